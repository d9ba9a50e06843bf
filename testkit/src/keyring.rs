//! A session's message bus of the test's own, with a real keyring on it or without one.
//!
//! The keyring is GNOME's daemon, which speaks the Secret Service API. It knows nothing of what is kept there.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::TestProcess;
use crate::tools::Tool;
use crate::{TestDir, wait_until};

const START_DEADLINE: Duration = Duration::from_secs(30);
const COLLECTION: &str = "/org/freedesktop/secrets/collection/login";
const SERVICE: &str = "org.freedesktop.secrets";

/// A message bus on which nothing is started by itself. Ends, with what is on it, on drop.
#[derive(Debug)]
pub struct SessionBus {
    keyring: Option<TestProcess>,
    _bus: TestProcess,
    dir: TestDir,
}

impl SessionBus {
    /// Starts one without a keyring.
    ///
    /// # Panics
    /// When dbus-daemon is not installed (says what to run) or does not start.
    pub fn start() -> Self {
        let dir = TestDir::new();
        let configuration = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
             <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            dir.join("bus").display()
        );
        fs::write(dir.join("bus.conf"), configuration).unwrap();
        let mut command = Command::new(Tool::DbusDaemon.path());
        command.arg("--nofork").arg(format!("--config-file={}", dir.join("bus.conf").display()));
        let mut bus = TestProcess::spawn("dbus-daemon", &command, dir.path());
        bus.wait_ready("its socket", START_DEADLINE, |_| dir.join("bus").exists().then_some(()));
        Self { keyring: None, _bus: bus, dir }
    }

    /// Starts one with an open keyring.
    ///
    /// # Panics
    /// When dbus-daemon or gnome-keyring-daemon is not installed (says what to run) or does not start.
    pub fn with_keyring() -> Self {
        let mut bus = Self::start();
        bus.open_keyring();
        bus
    }

    /// `DBUS_SESSION_BUS_ADDRESS`.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.dir.join("bus").display())
    }

    /// Starts the daemon and opens its keyring, which is there again if it was before.
    ///
    /// # Panics
    /// When it does not start.
    pub fn open_keyring(&mut self) {
        let password = self.dir.join("password");
        fs::write(&password, "the keyring of a test").unwrap();
        let mut command = Command::new("sh");
        let line = "exec \"$0\" --foreground --components=secrets --unlock < \"$1\"";
        command.args(["-c", line]).arg(Tool::GnomeKeyring.path()).arg(&password).current_dir(self.dir.path());
        command.env("DBUS_SESSION_BUS_ADDRESS", self.address());
        for variable in ["HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
            command.env(variable, self.dir.path());
        }
        let mut keyring = TestProcess::spawn("gnome-keyring-daemon", &command, self.dir.path());
        keyring.wait_ready("the open keyring", START_DEADLINE, |_| {
            let label = self.ask(
                "org.freedesktop.DBus.Properties.Get",
                &["string:org.freedesktop.Secret.Collection", "string:Locked"],
            );
            label.is_some_and(|answer| answer.contains("boolean false")).then_some(())
        });
        self.keyring = Some(keyring);
    }

    /// Locks the keyring, as a screen lock does.
    ///
    /// # Panics
    /// When it does not.
    pub fn lock_keyring(&self) {
        let objects = format!("array:objpath:{COLLECTION}");
        let locked = self.send("/org/freedesktop/secrets", "org.freedesktop.Secret.Service.Lock", &[&objects]);
        assert!(locked.is_some_and(|answer| answer.contains("login")), "the keyring was not locked");
    }

    /// Ends the keyring's daemon. What it keeps is there again when it is opened anew.
    ///
    /// # Panics
    /// When there is none.
    pub fn end_keyring(&mut self) {
        self.keyring.take().unwrap().terminate(START_DEADLINE);
        wait_until("the keyring to leave the bus", START_DEADLINE, || {
            let asked = self.send_to(
                "org.freedesktop.DBus",
                "/",
                "org.freedesktop.DBus.NameHasOwner",
                &[&format!("string:{SERVICE}")],
            );
            asked.is_some_and(|answer| answer.contains("boolean false"))
        });
    }

    /// Lets the daemon hang, as one does that waits for somebody, or go on.
    ///
    /// # Panics
    /// When there is none.
    pub fn freeze_keyring(&mut self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.keyring.as_mut().unwrap().signal(signal);
    }

    /// How many secrets it keeps with this attribute.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn secrets(&self, attribute: &str, value: &str) -> usize {
        let attributes = format!("dict:string:string:{attribute},{value}");
        let found = self.ask("org.freedesktop.Secret.Collection.SearchItems", &[&attributes]);
        found.unwrap_or_else(|| panic!("the keyring does not answer")).matches("object path").count()
    }

    fn ask(&self, method: &str, arguments: &[&str]) -> Option<String> {
        self.send(COLLECTION, method, arguments)
    }

    fn send(&self, object: &str, method: &str, arguments: &[&str]) -> Option<String> {
        self.send_to(SERVICE, object, method, arguments)
    }

    fn send_to(&self, service: &str, object: &str, method: &str, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(Tool::DbusDaemon.path().with_file_name("dbus-send"));
        command.args([
            "--session",
            "--print-reply",
            "--reply-timeout=5000",
            &format!("--dest={service}"),
            object,
            method,
        ]);
        let answer = command.args(arguments).env("DBUS_SESSION_BUS_ADDRESS", self.address()).output().ok()?;
        answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}
