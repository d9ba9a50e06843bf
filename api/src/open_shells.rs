//! Shells, jobs, followed logs and root shells that are open at this process, and how many of them a revocation ended.
//!
//! Whoever revokes asks every process of the API (`Witness`), this one among them. Not here: finding them (eventlog), and ending
//! what is open. Whoever carries it looks at its right again and again (`shell_socket`), and is asked here to look at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_domain::commit::Position;
use envforge_eventlog::gateways::{REFUSES_WITHIN_MAX, Witness};
use envforge_projections::Hot;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};

use crate::shell_socket::RIGHTS_CHECK;

/// How long a commit that stands in the log may take to get here. Whoever asks asks again.
const READ_WAIT: Duration = Duration::from_secs(2);
/// How long whoever counts them waits until they are over.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// How long the end of one waits to be counted, and what was counted to be asked for again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Nobody waits for this process any more soon after: what is open ends now. Some looks at it fit in between.
const UNWATCHED_MAX: Duration = REFUSES_WITHIN_MAX.saturating_sub(RIGHTS_CHECK.saturating_mul(3));

/// Clones are one.
#[derive(Clone)]
pub struct OpenShells(Arc<Shared>);

struct Shared {
    hot: Arc<Hot>,
    all: Mutex<All>,
    /// Rights may have changed.
    look: Arc<Notify>,
    /// One is over.
    over: Notify,
    /// By what took their right; with when that was asked first.
    counted: Mutex<HashMap<Vec<Position>, (Instant, Count)>>,
    watch: Mutex<Watch>,
}

/// How many lost their right, once they are over; `None` where some take too long.
type Count = Arc<OnceCell<Option<u32>>>;

/// Whether others wait for what is open here when they take rights away.
#[derive(Clone, Copy)]
enum Watch {
    /// There are no others.
    Alone,
    /// They did then; `None` before the first time.
    Last(Option<Instant>),
}

#[derive(Default)]
struct All {
    next: u64,
    open: HashMap<u64, Open>,
    /// When those ended that had lost their right and are on no receipt yet, and how far the log was known that said so.
    ended: Vec<(Instant, Position)>,
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
        let shared = &self.shells.0;
        let open = shared.all.lock().open.remove(&self.key);
        if let Some(open) = open.filter(|open| !open.counted)
            && (open.lost)()
        {
            let known = shared.hot.position();
            let mut all = shared.all.lock();
            all.ended.retain(|(at, _)| at.elapsed() < REMEMBERED);
            all.ended.push((Instant::now(), known));
        }
        shared.over.notify_waiters();
    }
}

impl OpenShells {
    /// Of the only process that serves the API, where `alone`; else others wait for it once it is enrolled with them.
    pub fn new(hot: Arc<Hot>, alone: bool) -> Self {
        let watch = Mutex::new(if alone { Watch::Alone } else { Watch::Last(None) });
        let (all, look, over, counted) = Default::default();
        Self(Arc::new(Shared { hot, all, look, over, counted, watch }))
    }

    /// How long after it was last known as one that others wait for nothing is open here any more.
    pub const ENDS_WITHIN: Duration = REFUSES_WITHIN_MAX;

    /// Nobody waits for what is open here, or soon nobody will: nothing may be.
    pub(crate) fn is_unwatched(&self) -> bool {
        match *self.0.watch.lock() {
            Watch::Alone => false,
            Watch::Last(last) => last.is_none_or(|last| last.elapsed() >= UNWATCHED_MAX),
        }
    }

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

    /// Those that lost their right with the commit at `first`, which is known here, or since, once they are over; `None` where some
    /// take too long. Each is counted once, by whichever revocation asks first.
    async fn ended_since(&self, first: Position) -> Option<u32> {
        let (shells, waited_for) = {
            let mut all = self.0.all.lock();
            let before = all.ended.len();
            all.ended.retain(|(_, known)| *known < first);
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
        tokio::time::timeout(CLOSE_WAIT, over).await.ok()?;
        Some(u32::try_from(shells).unwrap_or(u32::MAX))
    }
}

#[async_trait]
impl Witness for OpenShells {
    fn is_fresh(&self) -> bool {
        self.0.hot.fresh().is_ok()
    }

    async fn has_read(&self, position: Position) -> bool {
        self.0.hot.wait_for(position, READ_WAIT).await.is_ok()
    }

    async fn closed_by(&self, commits: &[Position]) -> Option<u32> {
        let Some(first) = commits.iter().copied().min() else { return Some(0) };
        let count = {
            let mut counted = self.0.counted.lock();
            counted.retain(|_, (asked, _)| asked.elapsed() < REMEMBERED);
            let (_, count) = counted.entry(commits.to_vec()).or_insert_with(|| (Instant::now(), Arc::default()));
            Arc::clone(count)
        };
        *count.get_or_init(|| self.ended_since(first)).await
    }

    fn was_waited_for(&self, at: Instant) {
        *self.0.watch.lock() = Watch::Last(Some(at));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicBool, Ordering};

    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use tokio_util::sync::CancellationToken;

    use super::*;

    const NOW: Position = Position::START;

    async fn open_shells(alone: bool) -> (OpenShells, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let log = SqliteLog::open(Config::new(folder.path())).await.unwrap();
        (OpenShells::new(Hot::start(Arc::new(log), CancellationToken::new()), alone), folder)
    }

    #[tokio::test]
    async fn what_lost_its_right_is_counted_once_whether_it_is_over_yet_or_not_and_the_same_is_said_again() {
        let ((open, _folder), lost) = (open_shells(true).await, Arc::new(AtomicBool::new(false)));
        let hold = || {
            let lost = Arc::clone(&lost);
            open.hold(move || lost.load(Ordering::SeqCst))
        };
        let (over, going, _stays) = (hold(), hold(), open.hold(|| false));
        drop(hold());
        assert_eq!(open.ended_since(NOW).await, Some(0), "what ended by itself is nobody's");
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
        let commits = [Position::new(1), NOW];
        assert_eq!(open.closed_by(&commits).await, Some(2));
        rung.await;
        assert!(carrier.await.is_ok());
        assert_eq!(open.closed_by(&[NOW]).await, Some(0), "of another revocation");
        assert_eq!(open.closed_by(&commits).await, Some(2), "asked again");
        assert_eq!(open.closed_by(&[]).await, Some(0));
    }

    #[tokio::test]
    async fn what_does_not_end_in_time_is_told_and_what_ended_before_is_not() {
        let (open, _folder) = open_shells(true).await;
        drop(open.hold(|| true));
        let _stuck = open.hold(|| true);
        assert_eq!(open.ended_since(Position::new(1)).await, None);
        assert_eq!(open.ended_since(Position::new(1)).await, Some(0), "on a receipt already");
        assert_eq!(open.ended_since(NOW).await, Some(1), "that was over before");
    }

    #[tokio::test]
    async fn nothing_stays_open_where_others_do_not_wait_for_it() {
        let ((alone, _one), (open, _two)) = (open_shells(true).await, open_shells(false).await);
        assert!(!alone.is_unwatched());
        assert!(open.is_unwatched(), "not before it is enrolled");
        open.was_waited_for(Instant::now());
        assert!(!open.is_unwatched());
        let long_ago = Instant::now().checked_sub(UNWATCHED_MAX).unwrap();
        open.was_waited_for(long_ago);
        assert!(open.is_unwatched());
    }
}
