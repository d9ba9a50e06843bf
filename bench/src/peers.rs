//! nginx beside our gateway, and the app behind both: its files by nginx on the load cores, its WebSocket echo by ourselves.
//!
//! Not here: the load (`load`) and our own processes (`processes`).

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use envforge_testkit::tools::Tool;
use envforge_testkit::{TestProcess, free_port};

use crate::machine::{Cores, children_of};

const START_DEADLINE: Duration = Duration::from_secs(20);

/// The sizes that are asked for: path and bytes.
pub(crate) const FILES: [(&str, usize); 3] = [("1k", 1 << 10), ("64k", 64 << 10), ("10m", 10 << 20)];

/// A running nginx with one worker.
pub(crate) struct Nginx {
    _process: TestProcess,
    worker: u32,
}

impl Nginx {
    /// The one process that works.
    pub(crate) fn worker(&self) -> u32 {
        self.worker
    }

    fn start(name: &str, mut command: Command, configuration: &str, ports: &[u16], dir: &Path) -> Result<Self> {
        let folder = dir.join(name);
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("nginx.conf");
        std::fs::write(&file, configuration)?;
        command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(&file);
        let mut process = TestProcess::spawn(name, &command, &folder);
        let worker = process.wait_ready("an open port and a worker", START_DEADLINE, |process| {
            let open = ports.iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok());
            open.then(|| children_of(process.id()).first().copied()).flatten()
        });
        Ok(Self { _process: process, worker })
    }
}

/// What every configuration begins with.
fn preamble(dir: &Path) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "daemon off; worker_processes 1; pid {}/nginx.pid;", dir.display());
    let _ = writeln!(text, "events {{ worker_connections 8192; }}");
    let _ = writeln!(text, "http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600;");
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "{kind}_temp_path {}/{kind};", dir.display());
    }
    text
}

/// The app's files on the load cores. Answers its port too.
pub(crate) fn app(dir: &Path) -> Result<(Nginx, u16)> {
    let port = free_port();
    let folder = dir.join("app");
    let files = folder.join("files");
    std::fs::create_dir_all(&files)?;
    for (name, bytes) in FILES {
        std::fs::write(files.join(name), vec![b'x'; bytes]).context("the app's files")?;
    }
    let mut text = preamble(&folder);
    let _ = writeln!(text, "sendfile on; tcp_nodelay on; open_file_cache max=10 inactive=1h;");
    let _ = writeln!(text, "server {{ listen 127.0.0.1:{port} backlog=1024; root {}; }} }}", files.display());
    // As root nginx takes another account for its worker, which may not look into the folder.
    if nix::unistd::geteuid().is_root() {
        text.insert_str(0, "user root;\n");
    }
    Ok((Nginx::start("app", Command::new(Tool::Nginx.path()), &text, &[port], dir)?, port))
}

/// nginx as a proxy without any check, and as one that asks `check` about every request.
pub(crate) struct Proxies {
    pub(crate) plain: Nginx,
    pub(crate) plain_port: u16,
    pub(crate) asking: Nginx,
    pub(crate) asking_port: u16,
}

/// Both on the measured core, one worker each, keep-alive to the app, buffers large enough that no answer goes through a file.
pub(crate) fn proxies(cores: &Cores, dir: &Path, app: u16, echo: u16, check: u16) -> Result<Proxies> {
    let upstream = |name: &str, port: u16| {
        format!(
            "upstream {name} {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; keepalive_timeout 600; }}\n"
        )
    };
    let pass = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; \
                proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto http; \
                proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;";
    let build = |name: &str, ask: &str, port: u16, extra: &str| {
        let folder = dir.join(name);
        let mut text = preamble(&folder);
        text.push_str(&upstream("app", app));
        text.push_str(&upstream("check", check));
        let _ = writeln!(text, "tcp_nodelay on; server {{ listen 127.0.0.1:{port} backlog=1024;");
        let _ = writeln!(text, "location / {{ {ask} {pass} proxy_pass http://app; }}");
        let _ = writeln!(
            text,
            "location /api/live {{ proxy_http_version 1.1; proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade; \
             proxy_set_header Connection \"upgrade\"; proxy_read_timeout 600s; proxy_pass http://127.0.0.1:{echo}; }}"
        );
        let _ = writeln!(text, "{extra} }} }}");
        text
    };
    let asked = "location = /check { internal; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass_request_body off; \
                 proxy_set_header Content-Length \"\"; proxy_pass http://check; }";
    let (plain_port, asking_port) = (free_port(), free_port());
    let plain = build("plain", "", plain_port, "");
    let asking = build("asking", "auth_request /check;", asking_port, asked);
    let start =
        |name, text: &str, port| Nginx::start(name, cores.measured_command(Tool::Nginx.path()), text, &[port], dir);
    Ok(Proxies {
        plain: start("plain", &plain, plain_port)?,
        plain_port,
        asking: start("asking", &asking, asking_port)?,
        asking_port,
    })
}
