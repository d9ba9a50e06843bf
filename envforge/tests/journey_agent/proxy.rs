//! The network between an agent and the control plane, which a test can cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes bytes on, unless it is cut.
pub(crate) struct Proxy {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let (from, _) = listener.accept().await.unwrap();
                tokio::spawn(pass_on(from, port, cuts.clone()));
            }
        });
        Self { address, cut }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What is open breaks, and nothing opens, until it is mended.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn pass_on(mut from: TcpStream, port: u16, mut cuts: watch::Receiver<bool>) {
    if *cuts.borrow() {
        return;
    }
    let Ok(mut to) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
        _ = cuts.wait_for(|cut| *cut) => {}
    }
}
