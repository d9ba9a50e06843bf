//! AWS of the test's own: moto behind `testkit/aws/overlay.py`, which adds what moto leaves out.
//!
//! It knows no rule of EnvForge. Levers are pulled over HTTP with JSON as text.

use crate::local_http::post;
use crate::process::TestProcess;
use crate::{TestDir, free_port, tools::Tool};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START_DEADLINE: Duration = Duration::from_secs(90);

/// A running stand-in for EC2, SSM, KMS and IAM of account 123456789012 in eu-central-1. Ends on drop, and forgets everything.
#[derive(Debug)]
pub struct Moto {
    process: TestProcess,
    port: u16,
    _dir: TestDir,
}

impl Moto {
    pub const REGION: &'static str = "eu-central-1";

    /// Starts one and returns once it answers.
    ///
    /// # Panics
    /// When Python or moto is not installed (says what to run) or does not start.
    pub fn start() -> Self {
        let (dir, port) = (TestDir::new(), free_port());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("aws/overlay.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(port.to_string()).current_dir(dir.path());
        command.env("PYTHONPATH", Tool::MotoDir.path()).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = TestProcess::spawn("moto", &command, dir.path());
        let answers = || matches!(post(port, "/overlay/counts", "{}"), Ok((200, _)));
        process.wait_ready("moto", START_DEADLINE, |_| answers().then_some(()));
        Self { process, port, _dir: dir }
    }

    /// Where the SDKs are to ask.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Pulls a lever of overlay.py; answers its JSON.
    ///
    /// # Panics
    /// When the overlay does not do it.
    pub fn pull(&self, lever: &str, json: &str) -> String {
        let (status, body) = post(self.port, &format!("/overlay/{lever}"), json)
            .unwrap_or_else(|error| panic!("moto did not answer: {error}\n{}", self.process.stderr()));
        assert!(status == 200, "lever {lever} of moto: {status} {body}\n{}", self.process.stderr());
        body
    }

    /// Makes a customer-managed key of KMS; its ARN.
    pub fn key(&self) -> String {
        self.pull("key", "{}").trim_matches('"').to_owned()
    }

    /// The next `times` requests for an action fail with this code.
    pub fn fault(&self, action: &str, code: &str, status: u16, times: u32) {
        self.pull("fault", &format!(r#"{{"action":"{action}","code":"{code}","status":{status},"times":{times}}}"#));
    }

    /// How often an action was asked for.
    pub fn count(&self, action: &str) -> u64 {
        let counts = self.pull("counts", "{}");
        let after = counts.split(&format!("\"{action}\": ")).nth(1).unwrap_or("0");
        after.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
    }
}
