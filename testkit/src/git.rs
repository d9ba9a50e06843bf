//! A git server over HTTPS that asks for a password: git's own `http-backend` behind `testkit/git/https_server.py`, with a certificate
//! of an authority that nobody trusts who is not told to.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::TestDir;
use crate::process::TestProcess;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running server on loopback, known as `localhost` and as `127.0.0.1`. Ends on drop.
#[derive(Debug)]
pub struct GitServer {
    _process: TestProcess,
    dir: TestDir,
    port: u16,
}

impl GitServer {
    /// Starts one without repositories that lets in `user` with `password`.
    ///
    /// # Panics
    /// Where `python3` or `openssl` is not there, or it does not start.
    pub fn start(user: &str, password: &str) -> Self {
        let dir = TestDir::new();
        certificate(dir.path());
        std::fs::create_dir_all(dir.join("repositories")).unwrap();
        std::fs::write(dir.join("requests"), "").unwrap();
        std::fs::write(dir.join("password"), password).unwrap();
        let mut command = Command::new("python3");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("git/https_server.py"));
        command.args(["server.pem", "server.key", "repositories"].map(|name| dir.join(name))).arg(user);
        command.args(["password", "requests", "moved"].map(|name| dir.join(name)));
        let mut process = TestProcess::spawn("git-server", &command, dir.path());
        let port = process.wait_ready("its port", START_DEADLINE, |process| process.stdout().trim().parse().ok());
        Self { _process: process, dir, port }
    }

    /// From now on another password is the right one.
    pub fn take(&self, password: &str) {
        std::fs::write(self.dir.join("password"), password).unwrap();
    }

    /// Serves a copy of a repository as `/acme/NAME.git`.
    pub fn add(&self, name: &str, source: &Path) -> PathBuf {
        let bare = self.dir.join("repositories/acme").join(format!("{name}.git"));
        git(&["clone", "--quiet", "--bare", &source.to_string_lossy(), &bare.to_string_lossy()], self.dir.path());
        bare
    }

    /// What answers below `/moved/` is from now on a redirect to there.
    pub fn move_to(&self, base: &str) {
        std::fs::write(self.dir.join("moved"), base).unwrap();
    }

    /// Where `/acme/NAME.git` is, by one of its names.
    pub fn url(&self, host: &str, name: &str) -> String {
        format!("{}/acme/{name}.git", self.base(host))
    }

    /// `https://localhost:1234`.
    pub fn base(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }

    /// What whoever asks must believe, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("authority.pem")
    }

    /// A line for each request: method, path, and what was shown.
    pub fn requests(&self) -> String {
        std::fs::read_to_string(self.dir.join("requests")).unwrap()
    }
}

fn git(arguments: &[&str], directory: &Path) {
    let done = Command::new("git").args(arguments).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An authority, and a certificate of it for loopback.
fn certificate(dir: &Path) {
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["-x509", "-subj", "/CN=authority of a test", "-keyout", "authority.key", "-out", "authority.pem"];
    let request = ["-subj", "/CN=git server of a test", "-keyout", "server.key", "-out", "server.csr"];
    let sign = ["-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"];
    let signed = ["-days", "2", "-extfile", "names", "-out", "server.pem"];
    let steps = [
        [&["req", "-days", "2"][..], &key, &authority].concat(),
        [&["req"][..], &key, &request].concat(),
        [&["x509"][..], &sign, &signed].concat(),
    ];
    for step in steps {
        let done = Command::new("openssl").args(&step).current_dir(dir).output();
        let done = done.unwrap_or_else(|error| panic!("tests of git over HTTPS need `openssl`: {error}"));
        assert!(done.status.success(), "openssl {step:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}
