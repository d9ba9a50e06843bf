//! SSH for one connection that somebody opened already: OpenSSH and what it carries (scp, sftp, rsync, an editor).
//!
//! The connection is authenticated before the first byte; the client's key, which it brought along, is accepted on this very
//! connection and nowhere else. What is started over it carries the marker of what its person leaves running, since editors
//! leave a server behind: it ends with the person's right. Forwarded are connections to loopback alone, which whoever has a shell here reaches
//! anyhow. Not here: who may, and the bytes' way to the client.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use envforge_domain::shell::{ShellEnd, ShellFailure, ShellInput, ShellOutput, ShellSignal, ShellWhat, TerminalSize};
use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, ChannelWriteHalf, MethodKind, MethodSet, Sig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::environment::{Environment, SERVICE_VARIABLE};
use crate::process::{Family, Marker};
use crate::record::blocking;
use crate::shell::{Opening, login_shell, not_started};
use crate::shell_process::CHUNKS_MAX;

/// Between the connection and the protocol.
const PIPE_BYTES: usize = 256 * 1024;
/// Channels of one connection: an editor forwards some dozens.
const CHANNELS_MAX: usize = 256;
/// Input of one channel that waits for its process. Clients are granted more as it comes, whatever the process takes; beyond this
/// the connection waits, also for what the client says of its own window.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
const AUTHENTICATION_PATIENCE: Duration = Duration::from_secs(30);
/// Where systems have OpenSSH's sftp-server.
const SFTP_SERVERS: [&str; 4] = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// An SSH server for one connection.
pub(crate) struct Server {
    host_key: PrivateKey,
    client_key: PublicKey,
    marker: Marker,
}

impl Server {
    pub(crate) async fn new(opening: &Opening, client_key: &str) -> Result<Self, ShellFailure> {
        let client_key = PublicKey::from_openssh(client_key).map_err(|_| ShellFailure::ClientKey)?;
        let path = opening.host.place(opening.order.workspace).join("ssh_host_key");
        let host_key = blocking(move || host_key(&path)).await.map_err(|error| not_started(&error))?;
        let marker = opening.lasting().await.map_err(|error| not_started(&error))?;
        Ok(Self { host_key, client_key, marker })
    }

    /// As known_hosts files have it: `ssh-ed25519 AAAA…`.
    pub(crate) fn host_key(&self) -> String {
        let mut key = self.host_key.public_key().clone();
        key.set_comment("");
        key.to_openssh().unwrap_or_default().trim_end().to_owned()
    }

    /// Until the connection ends, from whichever side.
    pub(crate) async fn serve(
        self,
        opening: Opening,
        input: mpsc::Receiver<ShellInput>,
        output: mpsc::Sender<ShellOutput>,
        stop: CancellationToken,
    ) {
        let config = Arc::new(russh::server::Config {
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: Duration::from_millis(100),
            auth_rejection_time_initial: Some(Duration::ZERO),
            max_auth_attempts: 4,
            keys: vec![self.host_key],
            // Whoever carries the connection looks for signs of life.
            inactivity_timeout: None,
            channel_buffer_size: 64,
            ..russh::server::Config::default()
        });
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        // Ends what runs here with the connection.
        let over = stop.child_token();
        let tasks = TaskTracker::new();
        let connection = Connection {
            place: Arc::new(Place { opening, marker: self.marker, over: over.clone() }),
            client_key: self.client_key,
            tasks: tasks.clone(),
            opened: 0,
            authenticated: Arc::new(Notify::new()),
        };
        let authenticated = Arc::clone(&connection.authenticated);
        let serving = async {
            match russh::server::run_stream(config, theirs, connection).await {
                Ok(session) => session.await,
                Err(error) => Err(error),
            }
        };
        let late = async {
            if tokio::time::timeout(AUTHENTICATION_PATIENCE, authenticated.notified()).await.is_ok() {
                std::future::pending().await
            }
        };
        let end = tokio::select! {
            end = carry(ours, input, &output) => end,
            served = serving => {
                if let Err(error) = served {
                    tracing::debug!(%error, "an SSH connection ended badly");
                }
                ShellEnd::Exited
            }
            () = late => ShellEnd::Silent,
            () = stop.cancelled() => ShellEnd::HostStopped,
        };
        over.cancel();
        tasks.close();
        tasks.wait().await;
        let code = (end == ShellEnd::Exited).then_some(0);
        let _ = output.send(ShellOutput::Over { end, code }).await;
    }
}

/// The workspace's key, made where there is none. Blocking.
fn host_key(path: &Path) -> io::Result<PrivateKey> {
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::read_to_string(path) {
        Ok(text) => return PrivateKey::from_openssh(text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(io::Error::other)?;
    let text = key.to_openssh(Default::default()).map_err(io::Error::other)?;
    let whole = path.with_extension(format!("{:08x}", rand::random::<u32>()));
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&whole)?;
    io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()?;
    // Whoever came first has made the one that counts.
    let linked = std::fs::hard_link(&whole, path);
    std::fs::remove_file(&whole)?;
    match linked {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            PrivateKey::from_openssh(std::fs::read_to_string(path)?).map_err(io::Error::other)
        }
        Err(error) => Err(error),
    }
}

/// Carries the connection's bytes, and takes whatever comes: its sender bounds it.
async fn carry(
    pipe: DuplexStream,
    mut input: mpsc::Receiver<ShellInput>,
    output: &mpsc::Sender<ShellOutput>,
) -> ShellEnd {
    let (mut read, mut write) = tokio::io::split(pipe);
    let (taken, mut pending) = (AtomicUsize::new(0), BytesMut::new());
    let wrote = Notify::new();
    let writing = async {
        let mut no_more = false;
        loop {
            if no_more && pending.is_empty() && write.shutdown().await.is_err() {
                return ShellEnd::Closed;
            }
            tokio::select! {
                biased;
                next = input.recv() => match next {
                    None => return ShellEnd::Closed,
                    Some(ShellInput::Data(bytes)) => pending.extend_from_slice(&bytes),
                    Some(ShellInput::End) => no_more = true,
                    Some(ShellInput::Resize(_) | ShellInput::Signal(_)) => {}
                },
                written = write.write(&pending), if !pending.is_empty() => match written {
                    Ok(written @ 1..) => {
                        pending.advance(written);
                        taken.fetch_add(written, Ordering::AcqRel);
                        wrote.notify_one();
                    }
                    _ => return ShellEnd::Exited,
                },
            }
        }
    };
    let reading = async {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let said = tokio::select! {
                () = wrote.notified() => ShellOutput::Taken(taken.swap(0, Ordering::AcqRel)),
                read = read.read(&mut chunk) => match read {
                    Ok(read @ 1..) => ShellOutput::Out(chunk[..read].to_vec()),
                    _ => return ShellEnd::Exited,
                },
            };
            if !matches!(said, ShellOutput::Taken(0)) && output.send(said).await.is_err() {
                return ShellEnd::Closed;
            }
        }
    };
    tokio::select! {
        end = writing => end,
        end = reading => end,
    }
}

/// Where the channels of one connection run what they are asked to.
struct Place {
    opening: Opening,
    marker: Marker,
    over: CancellationToken,
}

struct Connection {
    place: Arc<Place>,
    client_key: PublicKey,
    tasks: TaskTracker,
    opened: usize,
    authenticated: Arc<Notify>,
}

impl Connection {
    fn is_the_clients(&self, key: &PublicKey) -> Auth {
        if key.key_data() == self.client_key.key_data() { Auth::Accept } else { Auth::reject() }
    }

    fn has_room(&self) -> bool {
        self.tasks.len() < CHANNELS_MAX
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.is_the_clients(offer.public_key))
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(self.is_the_clients(key.public_key))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.authenticated.notify_one();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if !self.has_room() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.opened += 1;
        let (place, handle, number) = (Arc::clone(&self.place), session.handle(), self.opened);
        self.tasks.spawn(run_session(place, channel, handle, number));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let loopback = matches!(host, "localhost" | "127.0.0.1" | "::1");
        let (Ok(port), true) = (u16::try_from(port), loopback && self.has_room()) else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        let over = self.place.over.clone();
        self.tasks.spawn(async move {
            let Ok(mut connection) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
                reply.reject(ChannelOpenFailure::ConnectFailed).await;
                return;
            };
            reply.accept().await;
            let mut channel = channel.into_stream();
            let copying = tokio::io::copy_bidirectional(&mut channel, &mut connection);
            over.run_until_cancelled(copying).await;
        });
        Ok(())
    }
}

/// What a session channel was told before it runs something.
#[derive(Default)]
struct Asked {
    terminal: Option<(String, TerminalSize)>,
    variables: HashMap<String, String>,
}

/// One session channel: what it is asked for first decides what runs, and its end is the channel's. At the end of the connection
/// what runs is ended before this is.
async fn run_session(place: Arc<Place>, channel: Channel<Msg>, handle: russh::server::Handle, number: usize) {
    let id = channel.id();
    let (mut read, write) = channel.split();
    let mut asked = Asked::default();
    let over = &place.over;
    let words = loop {
        let Some(Some(message)) = over.run_until_cancelled(read.wait()).await else { return };
        let understood = match message {
            ChannelMsg::RequestPty { term, col_width, row_height, .. } => {
                asked.terminal = Some((term, size(col_width, row_height)));
                true
            }
            ChannelMsg::SetEnv { variable_name, variable_value, .. } => {
                let welcome = variable_name == "LANG" || variable_name.starts_with("LC_");
                if welcome && variable_value.len() <= 256 && asked.variables.len() < 32 {
                    asked.variables.insert(variable_name, variable_value);
                }
                welcome
            }
            ChannelMsg::RequestShell { .. } => {
                break [login_shell(), vec!["-l".to_owned()]].concat();
            }
            ChannelMsg::Exec { command, .. } => match String::from_utf8(command) {
                Ok(command) if !command.contains('\0') => {
                    break [login_shell(), vec!["-c".to_owned(), command]].concat();
                }
                _ => false,
            },
            ChannelMsg::RequestSubsystem { name, .. } if name == "sftp" => {
                match SFTP_SERVERS.iter().find(|path| Path::new(path).exists()) {
                    Some(path) => break vec![(*path).to_owned()],
                    None => {
                        tracing::warn!("this host has no sftp-server of OpenSSH: sftp and scp do not work");
                        false
                    }
                }
            }
            ChannelMsg::Close => return,
            ChannelMsg::RequestSubsystem { .. } | ChannelMsg::RequestX11 { .. } | ChannelMsg::AgentForward { .. } => {
                false
            }
            _ => continue,
        };
        let answering =
            async { if understood { handle.channel_success(id).await } else { handle.channel_failure(id).await } };
        let _ = over.run_until_cancelled(answering).await;
    };
    let environment = place.environment(&asked, number);
    match place.opening.start(&words, asked.terminal.as_ref().map(|(_, size)| *size), &environment) {
        Err(error) => {
            tracing::warn!(%error, "what SSH asked for could not be started");
            let _ = handle.channel_failure(id).await;
            let _ = write.close().await;
        }
        Ok(started) => {
            let groups = started.leader().into_iter().collect();
            // What lasts may have been ended since the connection began: whoever did so has not seen this one.
            let (lasts, stop) = (place.opening.lasts(&place.marker), over.child_token());
            let family = if lasts {
                // Of what it leaves behind only its own group ends with it: servers of editors go on.
                Family { groups_alone: true, ..place.opening.family(Marker::random(), groups) }
            } else {
                stop.cancel();
                place.opening.family(place.marker.clone(), groups)
            };
            let (input, fed) = mpsc::channel(CHUNKS_MAX);
            let (said, output) = mpsc::channel(CHUNKS_MAX);
            let waiting = Arc::new(Waiting::default());
            let talking = over.run_until_cancelled(async {
                let _ = handle.channel_success(id).await;
                tokio::join!(
                    tell(write, output, Arc::clone(&waiting)),
                    // Whoever closes the channel ends what runs there.
                    hear(&mut read, input, waiting),
                )
            });
            let (ended, _) = tokio::join!(started.carry(family, fed, said, stop), talking);
            if let Err(survivors) = ended {
                // They carry the marker of what lasts, and end with that.
                tracing::error!(count = survivors.count, "processes of an SSH connection that is over do not end");
            }
        }
    }
}

impl Place {
    fn environment(&self, asked: &Asked, number: usize) -> Environment {
        let ShellWhat::Ssh { .. } = &self.opening.order.what else { return Environment::default() };
        let term = asked.terminal.as_ref().map(|(term, _)| term.as_str());
        let mut environment = self.opening.environment(&self.marker, term);
        for (name, value) in &asked.variables {
            environment.set(name, value);
        }
        // No service's name holds a colon.
        environment.set(SERVICE_VARIABLE, format!("ssh:{number}"));
        // rsync, git and editors ask for it.
        environment.set("SSH_CONNECTION", "127.0.0.1 0 127.0.0.1 0");
        environment.set("SSH_CLIENT", "127.0.0.1 0 0");
        environment
    }
}

fn size(columns: u32, rows: u32) -> TerminalSize {
    // A client without a terminal of its own has none to tell.
    let within = |length: u32, usual: u16| match length {
        0 => usual,
        length => u16::try_from(length.min(4_000)).unwrap_or(usual),
    };
    TerminalSize { columns: within(columns, 80), rows: within(rows, 24) }
}

/// Input of a channel that its process has not taken.
#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    fewer: Notify,
    over: CancellationToken,
}

/// Passes on what the client says.
async fn hear(read: &mut ChannelReadHalf, input: mpsc::Sender<ShellInput>, waiting: Arc<Waiting>) {
    loop {
        while waiting.bytes.load(Ordering::Acquire) > WAITING_BYTES_MAX && !waiting.over.is_cancelled() {
            tokio::select! {
                () = waiting.fewer.notified() => {}
                () = waiting.over.cancelled() => return,
            }
        }
        let message = tokio::select! {
            message = read.wait() => message,
            () = waiting.over.cancelled() => return,
        };
        let passed_on = match message {
            None | Some(ChannelMsg::Close) => return,
            Some(ChannelMsg::Data { data }) => {
                waiting.bytes.fetch_add(data.len(), Ordering::AcqRel);
                ShellInput::Data(data.to_vec())
            }
            Some(ChannelMsg::Eof) => ShellInput::End,
            Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                ShellInput::Resize(size(col_width, row_height))
            }
            Some(ChannelMsg::Signal { signal }) => match signal {
                Sig::INT => ShellInput::Signal(ShellSignal::Interrupt),
                Sig::QUIT => ShellInput::Signal(ShellSignal::Quit),
                Sig::TERM => ShellInput::Signal(ShellSignal::Terminate),
                Sig::HUP => ShellInput::Signal(ShellSignal::Hangup),
                Sig::KILL => ShellInput::Signal(ShellSignal::Kill),
                _ => continue,
            },
            Some(_) => continue,
        };
        if input.send(passed_on).await.is_err() {
            return;
        }
    }
}

/// Passes on what the process says, and how it ended.
async fn tell(write: ChannelWriteHalf<Msg>, mut output: mpsc::Receiver<ShellOutput>, waiting: Arc<Waiting>) {
    while let Some(said) = output.recv().await {
        let told = match said {
            ShellOutput::Out(bytes) => write.data_bytes(bytes).await,
            ShellOutput::Error(bytes) => write.extended_data_bytes(1, bytes).await,
            ShellOutput::Taken(bytes) => {
                waiting.bytes.fetch_sub(bytes, Ordering::AcqRel);
                waiting.fewer.notify_one();
                Ok(())
            }
            ShellOutput::Over { end, code } => {
                let status = match (end, code) {
                    (ShellEnd::Exited, Some(code)) => code,
                    (ShellEnd::Signalled, Some(signal)) => 128 + signal,
                    _ => 255,
                };
                let _ = write.eof().await;
                let _ = write.exit_status(status).await;
                break;
            }
        };
        if told.is_err() {
            break;
        }
    }
    let _ = write.close().await;
    waiting.over.cancel();
}
