//! The network between an agent and the control plane, which a test can cut.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Passes bytes on, unless it is cut.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// What is open breaks, and both sides hear of it.
    Cut,
    /// Nothing passes, and nobody hears of it.
    Silent,
    /// What the control plane says is on its way for that long.
    Slow,
    /// What was open breaks, of which the agent alone hears; what opens goes to that port.
    Moved(u16),
}

/// Long enough to see in the log what the control plane did before it said so.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, states) = watch::channel(State::Open);
        tokio::spawn(async move {
            loop {
                let (from, _) = listener.accept().await.unwrap();
                tokio::spawn(pass_on(from, port, states.clone()));
            }
        });
        Self { address, state }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What is open breaks, and nothing opens, until it is mended.
    pub(crate) fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Nothing passes any more, as where a cable is pulled, until it is mended.
    pub(crate) fn fall_silent(&self) {
        self.state.send_replace(State::Silent);
    }

    /// What the control plane says comes late: until the line is cut it is on its way.
    pub(crate) fn slow_down(&self) {
        self.state.send_replace(State::Slow);
    }

    /// The agent comes back, to another process at that port; the former one does not hear that it is gone, until the line is cut.
    pub(crate) fn move_to(&self, port: u16) {
        self.state.send_replace(State::Moved(port));
    }

    pub(crate) fn mend(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn pass_on(mut from: TcpStream, port: u16, mut states: watch::Receiver<State>) {
    let (begun, port) = match *states.borrow() {
        State::Cut => return,
        State::Moved(port) => (State::Moved(port), port),
        begun => (begun, port),
    };
    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((from_reading, from_writing), (to_reading, to_writing)) = (from.split(), to.split());
    let has_moved = |state: &State| *state != begun && matches!(state, State::Moved(_));
    tokio::select! {
        () = copy(from_reading, to_writing, states.clone(), false) => {}
        () = copy(to_reading, from_writing, states.clone(), true) => {}
        _ = states.wait_for(|state| *state == State::Cut || has_moved(state)) => {}
    }
    if has_moved(&states.borrow_and_update()) {
        drop(from);
        let _ = states.wait_for(|state| *state == State::Cut).await;
    }
}

/// What is slow takes its time, however much of it there is.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut states: watch::Receiver<State>,
    from_control_plane: bool,
) {
    let (sent, mut on_its_way) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let state = states.clone();
    let taking_in = async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            let slow = from_control_plane && *state.borrow() == State::Slow;
            let due = Instant::now() + if slow { ON_ITS_WAY } else { Duration::ZERO };
            if sent.send((due, chunk[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let passing_on = async move {
        while let Some((due, chunk)) = on_its_way.recv().await {
            tokio::time::sleep_until(due).await; // pause: the line under test is as slow as this
            let open = states.wait_for(|state| *state != State::Silent).await.is_ok();
            if !open || to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(passing_on);
    tokio::select! {
        () = &mut passing_on => {}
        () = taking_in => passing_on.await,
    }
}
