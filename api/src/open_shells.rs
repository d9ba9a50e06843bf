//! Shells, jobs, followed logs and root shells that are open at this process, and how many of them a revocation ended.
//!
//! Not here: ending them. Whoever carries one looks at its right again and again (`shell_socket`), and is asked here to look at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long a receipt waits until those that it counts are over.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How long the end of one waits to be counted.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Clones are one.
#[derive(Clone, Default)]
pub(crate) struct OpenShells(Arc<Shared>);

#[derive(Default)]
struct Shared {
    all: Mutex<All>,
    /// Rights may have changed.
    look: Arc<Notify>,
    /// One is over.
    over: Notify,
}

#[derive(Default)]
struct All {
    next: u64,
    open: HashMap<u64, Open>,
    /// When those ended that had lost their right and are on no receipt yet.
    ended: Vec<Instant>,
}

struct Open {
    lost: Arc<dyn Fn() -> bool + Send + Sync>,
    /// It is on a receipt.
    counted: bool,
}

/// One that is open, until it is dropped.
pub(crate) struct Held {
    shells: OpenShells,
    key: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let open = self.shells.0.all.lock().open.remove(&self.key);
        if let Some(open) = open.filter(|open| !open.counted)
            && (open.lost)()
        {
            let mut all = self.shells.0.all.lock();
            all.ended.retain(|at| at.elapsed() < REMEMBERED);
            all.ended.push(Instant::now());
        }
        self.shells.0.over.notify_waiters();
    }
}

/// What a revocation ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) shells: usize,
    /// Of those, some are on their way to it.
    pub(crate) still_closing: bool,
}

impl OpenShells {
    /// `lost`: whether the right to it is.
    pub(crate) fn hold(&self, lost: impl Fn() -> bool + Send + Sync + 'static) -> Held {
        let mut all = self.0.all.lock();
        let key = all.next;
        all.next += 1;
        all.open.insert(key, Open { lost: Arc::new(lost), counted: false });
        drop(all);
        Held { shells: self.clone(), key }
    }

    /// Rings where those who carry one should look at its right at once.
    pub(crate) fn look(&self) -> Arc<Notify> {
        Arc::clone(&self.0.look)
    }

    /// Those that have lost their right `since` then, once they are over. Each is counted once, by whichever revocation asks first.
    pub(crate) async fn ended_since(&self, since: Instant) -> Ended {
        let (shells, waited_for) = {
            let mut all = self.0.all.lock();
            let before = all.ended.len();
            all.ended.retain(|at| *at < since);
            let over = before - all.ended.len();
            let lost = all.open.iter_mut().filter(|(_, open)| !open.counted && (open.lost)());
            let waited_for: Vec<u64> = lost
                .map(|(key, open)| {
                    open.counted = true;
                    *key
                })
                .collect();
            (over + waited_for.len(), waited_for)
        };
        self.0.look.notify_waiters();
        let over = async {
            loop {
                let changed = self.0.over.notified();
                if !waited_for.iter().any(|key| self.0.all.lock().open.contains_key(key)) {
                    return;
                }
                changed.await;
            }
        };
        Ended { shells, still_closing: tokio::time::timeout(CLOSE_WAIT, over).await.is_err() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn ended(shells: usize) -> Ended {
        Ended { shells, still_closing: false }
    }

    #[tokio::test]
    async fn what_lost_its_right_is_counted_once_whether_it_is_over_yet_or_not() {
        let (open, lost, begun) = (OpenShells::default(), Arc::new(AtomicBool::new(false)), Instant::now());
        let hold = || {
            let lost = Arc::clone(&lost);
            open.hold(move || lost.load(Ordering::SeqCst))
        };
        let (over, going, _stays) = (hold(), hold(), open.hold(|| false));
        drop(hold());
        assert_eq!(open.ended_since(begun).await, ended(0), "what ended by itself is nobody's");
        lost.store(true, Ordering::SeqCst);
        drop(over);
        let look = open.look();
        let (rung, carrier) = (
            look.notified(),
            tokio::spawn({
                let look = open.look();
                async move {
                    look.notified().await;
                    drop(going);
                }
            }),
        );
        tokio::task::yield_now().await;
        assert_eq!(open.ended_since(begun).await, ended(2));
        rung.await;
        assert!(carrier.await.is_ok());
        assert_eq!(open.ended_since(begun).await, ended(0));
    }

    #[tokio::test]
    async fn what_does_not_end_in_time_is_told_and_what_ended_before_is_not() {
        let open = OpenShells::default();
        drop(open.hold(|| true));
        let _stuck = open.hold(|| true);
        assert_eq!(open.ended_since(Instant::now()).await, Ended { shells: 1, still_closing: true });
        assert_eq!(open.ended_since(Instant::now()).await, ended(0));
    }
}
