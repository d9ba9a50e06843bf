//! Accepts connections within limits and serves HTTP/1.1 or HTTP/2 on them until told to stop.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ahash::AHashMap;
use envforge_domain::network::customer_of;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::connection_state::ConnectionState;
use super::guarded_io::GuardedIo;
use super::head_scan::{HEAD_BYTES_MAX, HEADERS_MAX};
use super::http2_stream::StreamExecutor;
use super::lane;
use super::signal::Signal;
use super::tls::Certificates;
use super::wire_request::WireRequest;
use crate::body::ResponseBody;
use crate::config::{Config, Limits, Timeouts};
use crate::metric;

/// What a client may send of one body before any of it is read. The same for all streams, since hyper sets no window of
/// a single one; what a held request may so fill is counted for it.
pub(crate) const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
}

/// Opens the listening socket, so that every error is known before anything is announced.
pub(crate) fn bind(config: &Config) -> Result<TcpListener, ListenError> {
    let address = config.listen;
    let open = || -> io::Result<TcpListener> {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if config.reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| ListenError::Bind { address, source })
}

/// Who is on the other side of a connection, and what its requests share.
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// The name that TLS was opened for, lower-case.
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) http2: bool,
    pub(crate) state: Arc<ConnectionState>,
}

/// What answers requests. One per connection, so that it can remember what its requests have in common.
pub(crate) trait Serve: Send + Sync + 'static {
    fn serve(self: &Arc<Self>, request: Request<Incoming>) -> impl Future<Output = Response<ResponseBody>> + Send;

    /// Answers a request that lies on the wire, where that needs no more than an app that is ready: writes status line
    /// and headers to `text`. `None` where `serve` has to; nothing has happened then.
    fn pass(
        self: &Arc<Self>,
        request: &WireRequest<'_>,
        text: &mut Vec<u8>,
    ) -> impl Future<Output = Option<Answer>> + Send;
}

/// Connections by address, within the limit of each.
struct Addresses {
    open: Mutex<AHashMap<IpAddr, usize>>,
    max: usize,
}

impl Addresses {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressEntry> {
        let address = customer_of(address);
        if self.max > 0 {
            let mut open = self.open.lock();
            let count = open.entry(address).or_insert(0);
            if *count >= self.max {
                return None;
            }
            *count += 1;
        }
        Some(AddressEntry { addresses: Arc::clone(self), address })
    }
}

struct AddressEntry {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Drop for AddressEntry {
    fn drop(&mut self) {
        if self.addresses.max == 0 {
            return;
        }
        let mut open = self.addresses.open.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Serves until `stop` is cancelled, then lets requests under way finish for `timeouts.drain`.
pub(crate) async fn serve<S: Serve>(
    listener: TcpListener,
    certificates: Option<Arc<Certificates>>,
    config: &Config,
    make_service: impl Fn(Client) -> S + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let (limits, timeouts) = (&config.limits, &config.timeouts);
    let make_service = Arc::new(make_service);
    let tls = certificates.map(|certificates| TlsAcceptor::from(certificates.server_config()));
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let addresses = Arc::new(Addresses { open: Mutex::default(), max: limits.connections_per_address_max });
    let http = Arc::new(Http::new(limits, timeouts, config.http1_lane));
    let connections = TaskTracker::new();
    let kill = CancellationToken::new();
    let open = metrics::gauge!("gateway_connections_open");
    loop {
        let (stream, address) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the client has gone: neither gets better by spinning.
                    metric::connection_refused("accept");
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            metric::connection_refused("connections_max");
            continue;
        };
        let Some(entry) = addresses.enter(address.ip()) else {
            metric::connection_refused("connections_per_address_max");
            continue;
        };
        // A proxy writes whole heads and chunks; waiting to join them only adds latency.
        let _ = stream.set_nodelay(true);
        let held: (OwnedSemaphorePermit, AddressEntry) = (slot, entry);
        let (http, tls, make_service) = (Arc::clone(&http), tls.clone(), Arc::clone(&make_service));
        let (stop, kill, open) = (stop.clone(), kill.clone(), open.clone());
        connections.spawn(async move {
            open.increment(1);
            let mut serving = pin!(http.connection(stream, address, tls, &*make_service, &stop));
            let mut killed = Signal::new(&kill);
            poll_fn(|cx| match serving.as_mut().poll(cx) {
                Poll::Pending => killed.poll(cx),
                ended => ended,
            })
            .await;
            open.decrement(1);
            drop(held);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(timeouts.drain, connections.wait()).await.is_err() {
        kill.cancel();
        connections.wait().await;
    }
}

/// One HTTP/1 connection over a stream that is no socket.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) async fn serve_stream<S: Serve>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    lane: bool,
    service: Arc<S>,
) {
    let (limits, timeouts) = (Limits::default(), Timeouts::default());
    let stop = CancellationToken::new();
    Http::new(&limits, &timeouts, lane).http1(stream, Arc::default(), service, &stop).await;
}

/// The two protocols, set up once.
struct Http {
    http1: hyper::server::conn::http1::Builder,
    http2: hyper::server::conn::http2::Builder<StreamExecutor>,
    timeouts: Timeouts,
    /// Whether connections begin on the lane.
    lane: bool,
}

impl Http {
    fn new(limits: &Limits, timeouts: &Timeouts, lane: bool) -> Self {
        let mut http1 = hyper::server::conn::http1::Builder::new();
        // No `pipeline_flush`: it loses 400 and 431 answers. No `header_read_timeout` of hyper's: `GuardedIo` holds
        // the deadlines with one timer a connection instead of one a request.
        http1.timer(TokioTimer::new()).header_read_timeout(None).max_headers(HEADERS_MAX + 8).half_close(false);
        let mut http2 = hyper::server::conn::http2::Builder::new(StreamExecutor { write: timeouts.io.write });
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams_max)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(Some(Duration::from_secs(20)))
            .keep_alive_timeout(Duration::from_secs(20))
            .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(1024 * 1024)
            .max_send_buf_size(256 * 1024)
            .enable_connect_protocol();
        Self { http1, http2, timeouts: timeouts.clone(), lane }
    }

    async fn connection<S: Serve>(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        make_service: &(impl Fn(Client) -> S + Send + Sync),
        stop: &CancellationToken,
    ) {
        let state = Arc::new(ConnectionState::default());
        let client = Client { address, server_name: None, state: Arc::clone(&state), http2: false };
        let Some(acceptor) = tls else {
            return Box::pin(self.http1(stream, state, Arc::new(make_service(client)), stop)).await;
        };
        match Box::pin(tokio::time::timeout(self.timeouts.tls_handshake, acceptor.accept(stream))).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let server_name = session.server_name().map(|name| name.to_ascii_lowercase().into_boxed_str());
                let http2 = session.alpn_protocol() == Some(b"h2");
                let service = Arc::new(make_service(Client { server_name, http2, ..client }));
                // In boxes: a connection's task keeps room for what it does and not for what it might have done.
                if http2 {
                    Box::pin(self.http2(stream, state, service, stop)).await;
                } else {
                    Box::pin(self.http1(stream, state, service, stop)).await;
                }
            }
            Ok(Err(error)) => {
                metric::connection_refused("tls_handshake");
                tracing::debug!(%error, "TLS handshake failed");
            }
            Err(_) => metric::connection_timeout("tls_handshake"),
        }
    }

    async fn http1<S: Serve, I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: I,
        state: Arc<ConnectionState>,
        service: Arc<S>,
        stop: &CancellationToken,
    ) {
        let mut io = GuardedIo::http1(stream, state, self.timeouts.io);
        if self.lane && Box::pin(lane::run(&mut io, &service, stop)).await == lane::End::Closed {
            return;
        }
        let io = TokioIo::new(io);
        let service = service_fn(move |request| {
            let service = Arc::clone(&service);
            async move { Ok::<_, Infallible>(service.serve(request).await) }
        });
        let mut connection = Box::pin(self.http1.serve_connection(io, service).with_upgrades());
        let mut stopping = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection ended");
                    }
                    return;
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }

    async fn http2<S: Serve, I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: I,
        state: Arc<ConnectionState>,
        service: Arc<S>,
        stop: &CancellationToken,
    ) {
        let io = TokioIo::new(GuardedIo::http2(stream, Arc::clone(&state), self.timeouts.io));
        let service = service_fn(move |request| {
            let service = Arc::clone(&service);
            async move { Ok::<_, Infallible>(service.serve(request).await) }
        });
        let mut connection = pin!(self.http2.serve_connection(io, service));
        let mut idle_check = tokio::time::interval(self.timeouts.io.idle / 2);
        idle_check.tick().await;
        let (mut stopping, mut idle_before) = (false, false);
        // A polite end needs the client's word, so it has a limit. Armed with the shutdown.
        let mut end = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "connection ended");
                    }
                    return;
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    end.as_mut().reset(Instant::now() + self.timeouts.drain);
                    connection.as_mut().graceful_shutdown();
                }
                () = end.as_mut(), if stopping => {
                    if state.in_flight() == 0 {
                        metric::connection_timeout("shutdown");
                        return;
                    }
                    end.as_mut().reset(Instant::now() + self.timeouts.drain);
                }
                _ = idle_check.tick(), if !stopping => {
                    // Idle at two checks in a row, and no request in between.
                    let idle = state.in_flight() == 0 && !state.take_served();
                    if idle && idle_before {
                        stopping = true;
                        end.as_mut().reset(Instant::now() + self.timeouts.drain);
                        connection.as_mut().graceful_shutdown();
                    }
                    idle_before = idle;
                }
            }
        }
    }
}
