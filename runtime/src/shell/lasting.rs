//! What somebody leaves running in a workspace beyond their connections: how it begins, who holds it up, how it ends.
//!
//! Not here: whether somebody still may (`api` looks), and what SSH starts of it (`shell_ssh`).

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellOrder, TerminalSize};

use super::{LEFTOVER_GRACE, Opening, Shells, name_of};
use crate::environment::Environment;
use crate::process::{Family, Marker, Survivors};
use crate::record::blocking;
use crate::terminal::in_own_session;
use crate::unix_user::{self, UserBlock};

/// A tmux that does not answer by then is none.
const TMUX_PATIENCE: Duration = Duration::from_secs(5);
const SESSION: &str = "main";
const ENDS_HERE: &str = "EnvForge ends here";

/// Of whom something lasts, and where.
pub(super) type Whose = (WorkspaceId, UserId);

/// One at a time of each. INVARIANT: nothing waits while the map is held.
pub(super) struct Turns<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> Turns<K> {
    pub(super) async fn take(&self, of: K) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(of).or_default());
        turn.lock_owned().await
    }
}

/// What somebody leaves running in a workspace: a tmux server, and what was started over SSH.
pub(super) struct Lasting {
    marker: Marker,
    key: ShellId,
    block: Option<UserBlock>,
    org: OrgId,
    project: ProjectId,
    /// The sign-ins that attached to it.
    attached: Vec<(SessionId, Surface)>,
    /// It is being ended: nobody attaches to it any more, and it stands here until nothing of it runs.
    ending: bool,
}

impl Lasting {
    fn family(&self) -> Family {
        Family::marked(self.marker.clone(), Vec::new(), self.block.clone())
    }
}

impl Shells {
    pub(super) fn all_lasting(&self) -> std::sync::MutexGuard<'_, HashMap<Whose, Lasting>> {
        self.lasting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What lasts here, with each sign-in that attached to it. Also what is being ended, until nothing of it runs.
    pub(crate) fn lasting(&self) -> Vec<LastingShell> {
        let all = self.all_lasting();
        let of = |((workspace, user), lasting): (&Whose, &Lasting)| {
            let (workspace, user, org, project) = (*workspace, *user, lasting.org, lasting.project);
            let attached = lasting.attached.iter();
            let shells = attached.map(move |&(session, surface)| LastingShell {
                org,
                project,
                workspace,
                user,
                session,
                surface,
            });
            shells.collect::<Vec<_>>()
        };
        all.iter().flat_map(of).collect()
    }

    /// Ends what lasts of somebody in a workspace.
    pub(crate) async fn end_of(&self, workspace: WorkspaceId, user: UserId) -> Result<(), Survivors> {
        self.end_by((workspace, user), async |family, grace| family.end(grace).await).await
    }

    /// INVARIANT: it is forgotten once nothing of it runs, and not before.
    async fn end_by(
        &self,
        whose: Whose,
        end: impl AsyncFn(Family, Duration) -> Result<usize, Survivors>,
    ) -> Result<(), Survivors> {
        let (family, key) = {
            let mut all = self.all_lasting();
            let Some(lasting) = all.get_mut(&whose) else { return Ok(()) };
            lasting.ending = true;
            (lasting.family(), lasting.key)
        };
        // At once, with what is just beginning there.
        end(family.clone(), LEFTOVER_GRACE).await?;
        // Whoever was at it may have started something more meanwhile; after them nobody does.
        let _turn = self.beginnings.take(whose).await;
        end(family, Duration::ZERO).await?;
        if let Err(error) = self.forget(key).await {
            tracing::warn!(%error, "the record of a lasting shell was not removed");
        }
        let mut all = self.all_lasting();
        // Somebody else may have been here for the same end, and somebody after them for something new.
        if all.get(&whose).is_some_and(|lasting| lasting.key == key) {
            all.remove(&whose);
        }
        Ok(())
    }
}

impl Opening {
    pub(super) fn whose(&self) -> Whose {
        (self.order.workspace, self.order.user)
    }

    /// The marker of what the person leaves running here.
    pub(crate) async fn lasting(&self) -> io::Result<Marker> {
        if let Some(marker) = self.attach()? {
            return Ok(marker);
        }
        let _turn = self.host.shells.beginnings.take(self.whose()).await;
        self.lasting_in_turn().await
    }

    /// The marker of what lasts already, which this sign-in then holds up, too.
    fn attach(&self) -> io::Result<Option<Marker>> {
        let attaches = (self.order.session, self.order.surface);
        match self.host.shells.all_lasting().get_mut(&self.whose()) {
            None if self.host.shells.stop.is_cancelled() => Err(io::Error::other(ENDS_HERE)),
            None => Ok(None),
            Some(known) if known.ending => Err(io::Error::other("what lasted here is just being ended")),
            Some(known) => {
                if !known.attached.contains(&attaches) {
                    known.attached.push(attaches);
                }
                Ok(Some(known.marker.clone()))
            }
        }
    }

    /// For whoever's turn it is. INVARIANT: it is on disk before the first process that carries it starts.
    async fn lasting_in_turn(&self) -> io::Result<Marker> {
        if let Some(marker) = self.attach()? {
            return Ok(marker);
        }
        let ShellOrder { org, project, session, surface, .. } = self.order;
        let (marker, key) = (Marker::random(), ShellId::from_uuid(uuid::Uuid::now_v7()));
        let record = self.unopened(marker.clone());
        self.write(key, &record).await?;
        let (block, attached) = (record.block, vec![(session, surface)]);
        let lasting = Lasting { marker: marker.clone(), key, block, org, project, attached, ending: false };
        let mut all = self.host.shells.all_lasting();
        // Whoever ends all of them has read by then which there are. The next start finds the record, and nothing that carries it.
        if self.host.shells.stop.is_cancelled() {
            return Err(io::Error::other(ENDS_HERE));
        }
        all.insert(self.whose(), lasting);
        Ok(marker)
    }

    /// Whether what carries this marker is still found by it.
    pub(crate) fn lasts(&self, marker: &Marker) -> bool {
        let all = self.host.shells.all_lasting();
        all.get(&self.whose()).is_some_and(|lasting| lasting.marker == *marker && !lasting.ending)
    }

    /// Words that attach to the person's tmux session here, which is begun where there is none. What prevents it otherwise.
    pub(super) async fn lasting_session(&self, size: TerminalSize) -> Result<Vec<String>, String> {
        let socket = self.socket().await.map_err(|error| format!("tmux has no place for its socket ({error})"))?;
        let tmux =
            |words: &[&str]| ["tmux", "-S", &socket].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let attach: Vec<String> = tmux(&["new-session", "-A", "-s", SESSION]);
        let not_begun = |error| format!("nothing that lasts could be begun ({error})");
        // So that two who come at once begin one session. A tmux that does not answer holds up its own person alone.
        let _turn = self.host.shells.beginnings.take(self.whose()).await;
        let marker = self.lasting_in_turn().await.map_err(not_begun)?;
        let environment = self.environment(&marker, Some("screen"));
        if self.run(&tmux(&["has-session", "-t", SESSION]), &environment).await.is_err() {
            let (columns, rows) = (size.columns.to_string(), size.rows.to_string());
            self.run(&tmux(&["new-session", "-d", "-s", SESSION, "-x", &columns, "-y", &rows]), &environment).await?;
        }
        // Whoever ends it meanwhile waits for this turn, and ends what was begun in it.
        self.attach().map_err(not_begun)?;
        Ok(attach)
    }

    /// Where the person's tmux of this workspace listens: in a directory of the workspace's user, where it has one.
    async fn socket(&self) -> io::Result<String> {
        let socket = self.host.shells.sockets.join(name_of(self.whose()));
        let Some(user) = self.directories.user() else { return Ok(socket.to_string_lossy().into_owned()) };
        let directory = socket.clone();
        blocking(move || unix_user::directory_of(&directory, user, 0o700)).await?;
        Ok(socket.join("s").to_string_lossy().into_owned())
    }

    /// Runs tmux for a moment, without a terminal.
    async fn run(&self, words: &[String], environment: &Environment) -> Result<(), String> {
        let mut command = in_own_session(&self.helper, None, self.directories.who(), words);
        command.env_clear().envs(environment.iter()).current_dir(&self.directories.work).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| format!("tmux could not be started ({error})"))?;
        match tokio::time::timeout(TMUX_PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) if status.code() == Some(127) => Err("this host has no tmux".to_owned()),
            _ => Err("tmux begins no session here".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::ShellRecord;
    use super::*;
    use crate::environment::MARKER_VARIABLE;
    use crate::process::KILL_PATIENCE;

    fn lasting(marker: &Marker, key: ShellId) -> Lasting {
        let attached = vec![(SessionId::from_uuid(uuid::Uuid::from_u128(1)), Surface::Cli)];
        let (org, project) =
            (OrgId::from_uuid(uuid::Uuid::from_u128(2)), ProjectId::from_uuid(uuid::Uuid::from_u128(3)));
        Lasting { marker: marker.clone(), key, block: None, org, project, attached, ending: false }
    }

    #[tokio::test]
    async fn what_does_not_end_lasts_until_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let shells = Shells::open_in(directory.path(), "boot", false).await.unwrap();
        let id = |number| uuid::Uuid::from_u128(number);
        let whose = (WorkspaceId::from_uuid(id(4)), UserId::from_uuid(id(5)));
        let (marker, key) = (Marker::random(), ShellId::from_uuid(id(6)));
        let record = ShellRecord {
            marker: marker.clone(),
            boot: "boot".to_owned(),
            groups: Vec::new(),
            block: None,
            opened: None,
        };
        shells.records.write(key, &record).unwrap();
        shells.all_lasting().insert(whose, lasting(&marker, key));
        for ends in [1, 2] {
            let asked = AtomicUsize::new(0);
            let ended = shells.end_by(whose, async |_, _| {
                // The first time, and then the second one.
                let survive = asked.fetch_add(1, Ordering::Relaxed) + 1 == ends;
                if survive { Err(Survivors { count: 3 }) } else { Ok(0) }
            });
            assert_eq!(ended.await, Err(Survivors { count: 3 }));
            assert_eq!(shells.lasting().len(), 1, "it is named");
            assert_eq!(shells.records.read_all().unwrap().len(), 1, "the next start finds it");
        }
        let mut left = tokio::process::Command::new("sleep")
            .arg("1000")
            .env(MARKER_VARIABLE, marker.as_str())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        assert_eq!(shells.end_of(whose.0, whose.1).await, Ok(()));
        tokio::time::timeout(KILL_PATIENCE, left.wait()).await.unwrap().unwrap();
        assert!(shells.lasting().is_empty() && shells.records.read_all().unwrap().is_empty());
        assert_eq!(shells.end_of(whose.0, whose.1).await, Ok(()), "there is nothing to end any more");
    }
}
