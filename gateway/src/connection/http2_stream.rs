//! The task of one HTTP/2 stream, ended where hyper would let it wait for ever.
//!
//! While a client's window is closed hyper does not ask the answer's body, so the body cannot see that the right to it
//! has ended, nor that nobody takes it. The task sees both, and with it only this stream is reset; a connection whose
//! other streams move goes on. Not here: answers that wait for their app, which end themselves (`body`).

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::metric;
use crate::standing::Right;

/// Runs streams; told how long a client may take nothing of one.
#[derive(Clone, Copy)]
pub(super) struct StreamExecutor {
    pub(super) write: Duration,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        tokio::spawn(run(stream, self.write));
    }
}

tokio::task_local! {
    /// What is known of the answer on the stream whose task runs.
    static ANSWER: RefCell<Answer>;
}

/// `Unknown` until the service has answered.
#[derive(Default)]
enum Answer {
    #[default]
    Unknown,
    Begun {
        /// What an app's answer rests on; `None` for pages of our own.
        right: Option<Right>,
        /// The body was asked and had nothing: it watches for itself.
        waits_for_app: bool,
        /// The body was asked since the last look.
        taken: bool,
    },
}

/// Called by the service with what its answer rests on.
pub(crate) fn begun(right: Option<&Right>) {
    let begun = Answer::Begun { right: right.cloned(), waits_for_app: false, taken: true };
    // Outside of a stream's task nobody looks.
    let _ = ANSWER.try_with(|answer| answer.replace(begun));
}

/// Called by the answer's body when it was asked for more.
pub(crate) fn asked(has_nothing: bool) {
    let _ = ANSWER.try_with(|answer| {
        if let Answer::Begun { waits_for_app, taken, .. } = &mut *answer.borrow_mut() {
            (*waits_for_app, *taken) = (has_nothing, true);
        }
    });
}

async fn run(stream: impl Future, write: Duration) {
    let mut stream = pin!(stream);
    let mut answer = Answer::Unknown;
    let mut watch = None;
    poll_fn(|cx| {
        let scope = RefCell::new(std::mem::take(&mut answer));
        let polled = ANSWER.sync_scope(scope, || {
            let polled = stream.as_mut().poll(cx);
            answer = ANSWER.with(RefCell::take);
            polled
        });
        match &mut answer {
            _ if polled.is_ready() => Poll::Ready(()),
            Answer::Unknown | Answer::Begun { waits_for_app: true, .. } => Poll::Pending,
            Answer::Begun { right, taken, .. } => {
                let watch = watch.get_or_insert_with(|| Watch::new(right.as_ref(), write));
                watch.poll(cx, std::mem::take(taken))
            }
        }
    })
    .await;
}

/// Made when a stream first waits for its client.
struct Watch {
    withdrawn: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    deadline: Option<Instant>,
    write: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    fn new(right: Option<&Right>, write: Duration) -> Self {
        let withdrawn = right.map(|right| Box::pin(right.withdrawn()) as _);
        let deadline = right.map(|right| right.deadline);
        Self { withdrawn, deadline, write, timer: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    /// `Ready` when the stream has to end.
    fn poll(&mut self, cx: &mut Context<'_>, taken: bool) -> Poll<()> {
        if self.withdrawn.as_mut().is_some_and(|withdrawn| withdrawn.as_mut().poll(cx).is_ready()) {
            metric::ended("body", "access_ended");
            return Poll::Ready(());
        }
        if taken {
            let limit = Instant::now() + self.write;
            self.timer.as_mut().reset(self.deadline.map_or(limit, |deadline| deadline.min(limit)));
        }
        self.timer.as_mut().poll(cx).map(|()| metric::ended("body", "client_takes_nothing"))
    }
}
