//! A token that is looked at only when it was given, and not each time when whoever waits beside it wakes.

use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Wakes and polls what it holds by itself, so that asking again costs a few loads.
pub(super) struct Signal(FuturesUnordered<WaitForCancellationFutureOwned>);

impl Signal {
    pub(super) fn new(token: &CancellationToken) -> Self {
        Self(FuturesUnordered::from_iter([token.clone().cancelled_owned()]))
    }

    /// `Ready` once the token was cancelled, and from then on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_next_unpin(cx).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_wakes_and_stays() {
        let token = CancellationToken::new();
        let mut signal = Signal::new(&token);
        let waiting = tokio::spawn(async move {
            std::future::poll_fn(|cx| signal.poll(cx)).await;
            std::future::poll_fn(|cx| signal.poll(cx)).await;
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        token.cancel();
        assert!(waiting.await.is_ok());
    }
}
