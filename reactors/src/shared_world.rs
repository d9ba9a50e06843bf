//! One world for all reactors of a process: the log is followed and folded once, and each reactor hears what may concern it.
//!
//! Not here: what a commit means (`world`), what to do about it (`runtime_reactor`).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

use envforge_domain::commit::StreamKind;
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::workspace::WorkspaceEvent;
use envforge_eventlog::{Follow, LogError, SharedLog};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::following::Following;
use crate::world::World;

/// What the log says, for as many reactors as there are hosts. Clones are one.
#[derive(Clone)]
pub struct SharedWorld(Arc<Shared>);

struct Shared {
    log: SharedLog,
    world: RwLock<World>,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    /// By the organization that they serve; those under `None` serve whichever.
    of: HashMap<Option<OrgId>, Vec<Weak<Mailbox>>>,
    caught_up: bool,
    ended: Option<LogError>,
}

/// News on their way to one reactor. However many there are, they are one set.
#[derive(Default)]
struct Mailbox {
    news: Mutex<News>,
    arrived: Notify,
}

/// What happened since the last time.
#[derive(Default)]
pub(crate) struct News {
    /// The log was read to its end for the first time: whatever came before is to be compared.
    pub(crate) caught_up: bool,
    pub(crate) touched: HashSet<WorkspaceId>,
    /// There may be room where there was none.
    pub(crate) hosts_changed: bool,
    /// Owners of secrets, by their id: one was set, removed or ruled otherwise.
    pub(crate) secrets_changed: HashSet<String>,
    pub(crate) archived: HashSet<(OrgId, WorkspaceId)>,
    pub(crate) ended: Option<LogError>,
    any: bool,
}

/// One reactor's ear.
pub(crate) struct Listening(Arc<Mailbox>);

impl Listening {
    /// Waits for news. Safe to cancel: they stay until they are taken.
    pub(crate) async fn next(&self) -> News {
        loop {
            let arrived = self.0.arrived.notified();
            {
                let mut news = self.0.news.lock().unwrap_or_else(PoisonError::into_inner);
                if news.any {
                    return std::mem::take(&mut news);
                }
            }
            arrived.await;
        }
    }
}

impl Mailbox {
    fn put(&self, add: impl FnOnce(&mut News)) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut news);
        news.any = true;
        drop(news);
        self.arrived.notify_one();
    }
}

impl SharedWorld {
    pub fn new(log: SharedLog) -> Self {
        Self(Arc::new(Shared { log, world: RwLock::default(), listeners: Mutex::default() }))
    }

    /// Follows the log until `stop`. A log that is out of reach is waited for.
    ///
    /// # Errors
    /// When the log cannot be followed any more: not the same log, or undecodable. All reactors have heard it then.
    pub async fn run(self, stop: CancellationToken) -> Result<(), LogError> {
        let mut following = Following::new(SharedLog::clone(&self.0.log), "reactors");
        loop {
            let Some(next) = stop.run_until_cancelled(following.next()).await else { return Ok(()) };
            match next {
                Err(error) => {
                    let mut listeners = self.listeners();
                    listeners.ended = Some(error.clone());
                    listeners.each(None, |news| news.ended = Some(error.clone()));
                    return Err(error);
                }
                Ok(Follow::Commit { recorded, .. }) => {
                    let touched = self.0.world.write().unwrap_or_else(PoisonError::into_inner).apply(&recorded);
                    let stream = &recorded.commit.stream;
                    let archived = recorded.commit.events.contains(&Event::Workspace(WorkspaceEvent::Archived));
                    let archived = touched.filter(|_| archived).map(|workspace| (stream.org(), workspace));
                    let mut listeners = self.listeners();
                    if listeners.caught_up {
                        listeners.each(Some(stream.org()), |news| {
                            news.touched.extend(touched);
                            news.hosts_changed |= stream.kind() == StreamKind::Host;
                            if stream.kind() == StreamKind::Secrets {
                                news.secrets_changed.insert(stream.key().to_owned());
                            }
                            news.archived.extend(archived);
                        });
                    }
                }
                Ok(Follow::Caught { .. }) => {
                    let mut listeners = self.listeners();
                    if !listeners.caught_up {
                        listeners.caught_up = true;
                        listeners.each(None, |news| news.caught_up = true);
                    }
                }
            }
        }
    }

    /// The organization that a machine belongs to, where one has used it.
    pub fn holder_of(&self, machine: &str) -> Option<OrgId> {
        self.read().holder_of(machine)
    }

    /// Whether the log was read to its end once.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.listeners().caught_up
    }

    /// Hears of one organization, or of all.
    pub(crate) fn listen(&self, org: Option<OrgId>) -> Listening {
        let mailbox = Arc::new(Mailbox::default());
        let mut listeners = self.listeners();
        if let Some(error) = listeners.ended.clone() {
            mailbox.put(|news| news.ended = Some(error));
        } else if listeners.caught_up {
            mailbox.put(|news| news.caught_up = true);
        }
        listeners.of.entry(org).or_default().push(Arc::downgrade(&mailbox));
        Listening(mailbox)
    }

    /// Whether nobody who still listens has heard of the same organization for longer: what one of them does for all is this one's.
    pub(crate) fn is_oldest(&self, org: Option<OrgId>, listening: &Listening) -> bool {
        let oldest = self.listeners().of.get(&org).into_iter().flatten().find_map(Weak::upgrade);
        oldest.is_some_and(|oldest| Arc::ptr_eq(&oldest, &listening.0))
    }

    /// INVARIANT: nobody reads a second time while they hold this: a writer that waits in between would wait for ever.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, World> {
        self.0.world.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Listeners> {
        self.0.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listeners {
    /// Tells those who hear of an organization, or everybody; forgets those who are gone.
    fn each(&mut self, org: Option<OrgId>, mut tell: impl FnMut(&mut News)) {
        let mut tell_all = |mailboxes: &mut Vec<Weak<Mailbox>>| {
            mailboxes.retain(|mailbox| {
                let mailbox = mailbox.upgrade();
                if let Some(mailbox) = &mailbox {
                    mailbox.put(&mut tell);
                }
                mailbox.is_some()
            });
            !mailboxes.is_empty()
        };
        match org {
            None => self.of.retain(|_, mailboxes| tell_all(mailboxes)),
            Some(org) => {
                for of in [None, Some(org)] {
                    if let Some(mailboxes) = self.of.get_mut(&of)
                        && !tell_all(mailboxes)
                    {
                        self.of.remove(&of);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_eventlog::sqlite::{Config, SqliteLog};
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn of_an_organizations_listeners_one_is_the_oldest_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let log = SqliteLog::open(Config::new(directory.path().join("log"))).await.unwrap();
        let world = SharedWorld::new(Arc::new(log));
        let org = |number| Some(OrgId::from_uuid(Uuid::from_u128(number)));
        let mut listening = Vec::from([1, 1, 1].map(|number| world.listen(org(number))));
        let elsewhere = [org(2), None].map(|org| (org, world.listen(org)));
        assert!(elsewhere.iter().all(|(org, listening)| world.is_oldest(*org, listening)));
        while !listening.is_empty() {
            let oldest: Vec<_> = listening.iter().map(|one| world.is_oldest(org(1), one)).collect();
            assert!(oldest[0] && !oldest[1..].contains(&true), "{oldest:?}");
            listening.remove(0);
        }
    }
}
