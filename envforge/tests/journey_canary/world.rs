//! An `envforge dev` that traces everything, a developer's repository, and what came out of both.
//!
//! Not here: what is done with it, and what is looked for.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess};
use serde_json::Value;

use crate::canary::{Canaries, plain, rich};
use crate::secrets;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const OWNER: &str = "owner@envforge.localhost";

/// What a place showed.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Everything planted and everything seen.
pub(crate) struct World {
    pub(crate) dir: TestDir,
    pub(crate) dev: TestProcess,
    pub(crate) started: Value,
    pub(crate) canaries: Canaries,
    pub(crate) places: Vec<Place>,
    pub(crate) verbs: BTreeSet<String>,
    /// Commands that did not end as they should have: what they showed is then not what was to be searched.
    pub(crate) unexpected: Vec<String>,
    pub(crate) planted: Planted,
}

/// The values that a test hands in, rather than gets.
pub(crate) struct Planted {
    pub(crate) owner_password: String,
    pub(crate) wrong_password: String,
    pub(crate) member_password: String,
    pub(crate) in_environment: String,
    pub(crate) in_repository: String,
    pub(crate) in_secrets: String,
    pub(crate) service_output: String,
    pub(crate) service_error: String,
    pub(crate) probe_output: String,
    pub(crate) probe_answer: String,
    pub(crate) query: String,
    pub(crate) body: String,
    pub(crate) authorization: String,
    pub(crate) app_cookie: String,
}

impl Planted {
    fn canaries(&self) -> Canaries {
        let mut canaries = Canaries::default();
        canaries.plant_password("the owner's password", &self.owner_password);
        canaries.plant_password("a wrong password", &self.wrong_password);
        canaries.plant_password("a member's password", &self.member_password);
        for (name, value) in [
            ("a variable of EnvForge's own environment", &self.in_environment),
            ("a password in a repository's address", &self.in_repository),
            ("a value pasted into `secrets`", &self.in_secrets),
            ("a failing service's output", &self.service_output),
            ("a failing service's standard error", &self.service_error),
            ("a failing probe's output", &self.probe_output),
            ("a failing probe's answer", &self.probe_answer),
            ("a request's query", &self.query),
            ("a request's body", &self.body),
            ("a request's Authorization", &self.authorization),
            ("an app's cookie", &self.app_cookie),
        ] {
            canaries.plant(name, value);
        }
        canaries
    }
}

/// `envforge dev` in a folder of its own.
pub(crate) fn dev(place: &Path, more: impl FnOnce(&mut Command)) -> (TestProcess, Value) {
    std::fs::create_dir_all(place).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0"]);
    command.args(["--log", "trace", "--log-format", "json", "--data"]).arg(place.join("data"));
    more(&mut command);
    let mut process = TestProcess::spawn("envforge dev", &command, place);
    let started = process.wait_ready("the first line", DEADLINE, |process| {
        let out = process.stdout();
        out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
    });
    (process, started)
}

/// The output of a command that reads `input`.
pub(crate) fn with_input(mut command: Command, input: &str) -> Vec<u8> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().stdout
}

impl World {
    pub(crate) fn start() -> Self {
        let planted = Planted {
            owner_password: rich(),
            wrong_password: rich(),
            member_password: rich(),
            in_environment: plain(),
            in_repository: plain(),
            in_secrets: rich(),
            service_output: rich(),
            service_error: rich(),
            probe_output: rich(),
            probe_answer: rich(),
            query: rich(),
            body: rich(),
            authorization: plain(),
            app_cookie: plain(),
        };
        let dir = TestDir::new();
        let password_file = dir.join("owner-password");
        std::fs::write(&password_file, format!("{}\n", planted.owner_password)).unwrap();
        let (dev, started) = dev(&dir.join("dev"), |command| {
            command.arg("--owner-password-file").arg(&password_file);
            command.env("CANARY_OF_THE_CONTROL_PLANE", &planted.in_environment);
        });
        let canaries = planted.canaries();
        let world = Self {
            dir,
            dev,
            started,
            canaries,
            planted,
            places: Vec::new(),
            verbs: BTreeSet::new(),
            unexpected: Vec::new(),
        };
        world.make_repository();
        world
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("dev").join("data")
    }

    pub(crate) fn text(&self, field: &str) -> String {
        self.started[field].as_str().unwrap().to_owned()
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.dir.join("orders")
    }

    pub(crate) fn saw(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.places.push(Place { name: name.into(), bytes: bytes.into() });
    }

    /// Every file in `folder` whose name `wanted` takes. At least one must be there.
    pub(crate) fn saw_files(&mut self, folder: &Path, wanted: impl Fn(&str) -> bool) {
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            // One that is being replaced is there again under its name.
            if path.is_file()
                && wanted(&name)
                && let Ok(bytes) = std::fs::read(&path)
            {
                count += 1;
                self.saw(format!("the file {}", path.display()), bytes);
            }
        }
        assert!(count > 0, "nothing to look at in {}", folder.display());
    }

    /// What lies on disk and is not meant to hold secrets.
    pub(crate) fn saw_stores(&mut self) {
        let data = self.data();
        self.saw_files(&data.join("log"), |_| true);
        self.saw_files(&data, |name| name.starts_with("read-models.sqlite"));
        self.saw_files(&data, |name| name.starts_with("credentials.sqlite"));
    }

    /// What runs below EnvForge, each with its environment.
    pub(crate) fn processes(&self) -> Vec<(u32, Vec<u8>)> {
        let read = |pid: u32| (pid, std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default());
        self.below(self.dev.id()).into_iter().map(read).collect()
    }

    fn below(&self, own: u32) -> Vec<u32> {
        let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter_map(|pid: u32| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
                let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
                Some((pid, parent))
            })
            .collect();
        let mut below = vec![own];
        let mut next = 0;
        while next < below.len() {
            let of = below[next];
            below.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
            next += 1;
        }
        below.remove(0);
        below
    }

    /// Everything that the processes of this machine were started with, those of services among them. EnvForge's own environment
    /// holds a variable that was planted there.
    pub(crate) fn saw_processes(&mut self) {
        let own = self.dev.id();
        let mut services = 0;
        let pids =
            std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        for pid in pids.collect::<Vec<u32>>() {
            for file in ["cmdline", "environ"].into_iter().filter(|file| pid != own || *file == "cmdline") {
                let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                services += usize::from(bytes.windows(17).any(|word| word == b"ENVFORGE_RUNTIME="));
                self.saw(format!("{file} of a process"), bytes);
            }
        }
        assert!(services > 0, "no service runs");
        let environment = std::fs::read(format!("/proc/{own}/environ")).unwrap();
        self.must_hold(&environment, "a variable of EnvForge's own environment", "EnvForge's own environment");
    }

    /// A place where a value may stand does hold it: otherwise the search sees nothing there.
    pub(crate) fn must_hold(&self, bytes: &[u8], canary: &str, place: &str) {
        let found = self.canaries.found_in(bytes);
        assert!(found.iter().any(|name| name.starts_with(canary)), "{place} does not hold {canary}: {found:?}");
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.dir.join("config")).current_dir(self.repository());
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG");
        command
    }

    /// A command of the command line, as text and as JSON where `args` does not say `--json` itself. Answers the last
    /// standard output.
    pub(crate) fn cli(&mut self, exit: i32, args: &[&str], stdin: &str) -> String {
        if args.contains(&"--json") {
            return self.cli_once(exit, args, stdin);
        }
        self.cli_once(exit, args, stdin);
        self.cli_once(exit, &[args, &["--json"]].concat(), stdin)
    }

    pub(crate) fn cli_once(&mut self, exit: i32, args: &[&str], stdin: &str) -> String {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that asks for nothing may be gone already.
        let _ = writeln!(child.stdin.take().unwrap(), "{stdin}");
        let output = child.wait_with_output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
        if output.status.code() != Some(exit) {
            let told = format!("{args:?} ended with {:?}, not {exit}: {out}{err}", output.status.code());
            eprintln!("{told}");
            self.unexpected.push(told);
        }
        self.remember_verb(args);
        self.saw(format!("`envforge {}`, standard error", args.join(" ")), err);
        let shown = match args {
            ["org", "invite", "create", ..] => self.without_invitation(&out),
            ["org", "token", "create" | "rotate", ..] => self.without_service_token(&out),
            ["host", "enrol", ..] => self.without_enrolment(&out),
            _ if may_share(args) => self.without_share_urls(&out),
            _ => out.clone(),
        };
        self.saw(format!("`envforge {}`", args.join(" ")), shown);
        out
    }

    /// Like `cli`, for a command that has a secret among its arguments: its places are not called by them.
    pub(crate) fn cli_without_arguments(&mut self, exit: i32, args: &[&str]) {
        let begin = self.places.len();
        self.cli(exit, args, "");
        let verb = args.iter().take(2).copied().collect::<Vec<_>>().join(" ");
        for place in &mut self.places[begin..] {
            place.name = format!("`envforge {verb}` with a secret among its arguments");
        }
    }

    /// Only the words that name a verb.
    pub(crate) fn remember_verb(&mut self, args: &[&str]) {
        let words = args.iter().take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'));
        self.verbs.insert(words.copied().take(3).collect::<Vec<_>>().join(" "));
    }

    /// `text` without the token of an invitation, which is looked for from now on. There must be one.
    fn without_invitation(&mut self, text: &str) -> String {
        let token = invitation_in(text);
        self.canaries.plant("the token of an invitation", &token);
        text.replace(&token, "")
    }

    /// `text` without the secret of a service token, which is looked for from now on. There must be one.
    fn without_service_token(&mut self, text: &str) -> String {
        let secret = service_token_in(text);
        self.canaries.plant("the secret of a service token", &secret);
        text.replace(&secret, "")
    }

    /// `text` without the secret of an enrolment's token, which is looked for from now on. There must be one.
    fn without_enrolment(&mut self, text: &str) -> String {
        let (_, token) = text.split_once("envforge-enrol-1.").unwrap();
        let ends = token.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_'))).unwrap_or(token.len());
        let (_, secret) = token[..ends].rsplit_once('.').unwrap();
        self.canaries.plant("the secret of an enrolment", secret);
        text.replace(secret, "")
    }

    /// `text` without share URLs, whose tokens are looked for from now on. There must be one.
    pub(crate) fn without_share_urls(&mut self, text: &str) -> String {
        let before = format!("{}/share/", self.text("gateway"));
        let mut parts = text.split(&before);
        let mut rest = parts.next().unwrap().to_owned();
        let mut count = 0;
        for part in parts {
            let ends = part.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(part.len());
            let (token, after) = part.split_at(ends);
            self.canaries.plant("a share token", token);
            rest.push_str(after);
            count += 1;
        }
        assert!(count > 0, "no share URL where one belongs: {text}");
        rest
    }

    /// The verbs of the command line as its help has them, without those that run a server.
    pub(crate) fn verbs_of_help(&self) -> BTreeSet<String> {
        let mut leaves = BTreeSet::new();
        let mut open = vec![String::new()];
        while let Some(verb) = open.pop() {
            let words: Vec<&str> = verb.split(' ').filter(|word| !word.is_empty()).collect();
            let output = self.command(&[words.as_slice(), &["--help"]].concat()).output().unwrap();
            let help = String::from_utf8(output.stdout).unwrap();
            let below: Vec<String> = help
                .lines()
                .skip_while(|line| *line != "Commands:")
                .skip(1)
                .take_while(|line| !line.is_empty())
                .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
                .map(|line| line.split_whitespace().next().unwrap())
                .filter(|word| !OPERATORS.contains(word))
                .map(|word| format!("{verb} {word}").trim().to_owned())
                .collect();
            if below.is_empty() {
                leaves.insert(verb);
            }
            open.extend(below);
        }
        leaves
    }

    /// The demo's services in small: one that works, one that ends, two whose probes fail, and a file with a mistake.
    fn make_repository(&self) {
        let root = self.repository();
        let planted = &self.planted;
        std::fs::create_dir(&root).unwrap();
        let secret = serde_json::to_string(&planted.in_secrets).unwrap();
        for (folder, manifest) in [
            (".", manifest("exec python3 serve.py", "http: /, deadline: 30s", "")),
            ("ending", manifest("exec sh end.sh", "http: /, deadline: 30s", "")),
            ("probed", manifest("exec python3 serve.py", "command: sh probe.sh, interval: 100ms, deadline: 1s", "")),
            ("asked", manifest("exec python3 serve.py", "http: /unready, interval: 100ms, deadline: 8s", "")),
            ("pasted", manifest("exec true", "http: /", &format!("    secrets: [{secret}]\n"))),
            ("kept", manifest("exec python3 serve.py", "http: /, deadline: 30s", &with_secrets())),
        ] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
            std::fs::write(root.join(folder).join("envforge.yml"), manifest).unwrap();
        }
        for (name, text) in [
            ("output.txt", &planted.service_output),
            ("error.txt", &planted.service_error),
            ("probe.txt", &planted.probe_output),
            ("unready.txt", &planted.probe_answer),
        ] {
            std::fs::write(root.join(name), format!("{text}\n")).unwrap();
        }
        std::fs::write(root.join("end.sh"), "cat output.txt; cat error.txt >&2; exit 3\n").unwrap();
        std::fs::write(root.join("probe.sh"), "cat probe.txt; cat probe.txt >&2; exit 1\n").unwrap();
        std::fs::write(root.join("serve.py"), SERVER).unwrap();
        for args in [
            &["init", "-q", "-b", "main"][..],
            &["add", "."],
            &["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "commit", "-q", "-m", "one"],
        ] {
            let git = Command::new("git").args(args).current_dir(&root).output().unwrap();
            assert!(git.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&git.stderr));
        }
    }
}

/// What operators type, beside the commands of people.
const OPERATORS: [&str; 9] =
    ["help", "agent", "dev", "serve", "setup", "projections", "recover-owner", "rotate-key", "rotate-agents-authority"];

/// The token of an invitation in what was shown to whoever invited.
pub(crate) fn invitation_in(text: &str) -> String {
    secret_in("efi_", text)
}

/// The secret of a service token in what was shown to whoever made it.
pub(crate) fn service_token_in(text: &str) -> String {
    secret_in("evf_st_", text)
}

fn secret_in(prefix: &str, text: &str) -> String {
    let (_, rest) = text.split_once(prefix).unwrap();
    let rest: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    format!("{prefix}{rest}")
}

/// Who asks to share a link gets its URL.
fn may_share(args: &[&str]) -> bool {
    matches!(args, ["link", "create" | "rotate" | "handoff", ..])
}

/// The rest of a manifest whose two services declare secrets.
fn with_secrets() -> String {
    let [web, worker] = secrets::SERVICES.map(secrets::declared);
    format!("{web}  worker:\n    command: exec sleep 100000\n    readiness: {{ none: true }}\n{worker}")
}

fn manifest(command: &str, readiness: &str, more: &str) -> String {
    format!(
        "version: 1\nservices:\n  web:\n    command: {command}\n    route: {{ web: {{}} }}\n    readiness: {{ {readiness} }}\n{more}"
    )
}

/// Says everything that it is asked on its own output, and nothing of it in its answers.
const SERVER: &str = r#"
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        print(self.command, self.path, body.decode(), self.headers, file=sys.stdout, flush=True)
        unready = self.path == "/unready"
        text = open("unready.txt", "rb").read() if unready else b"fine"
        self.send_response(503 if unready else 200, text.strip().decode("latin-1") if unready else None)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    do_GET = do_POST = answer
    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;
