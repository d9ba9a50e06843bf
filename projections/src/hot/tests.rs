//! Following a log that is there, that comes and goes, and that is not the same any more.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use envforge_domain::access::Resource;
use envforge_domain::commit::{Commit, Expectation, StreamId};
use envforge_domain::dev_link::{DevLinkEvent, RouteFamily};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::{AppendError, Appended, CheckpointProof, EventLog, Head, LogIdentity, Page};
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;

use super::*;
use crate::given::*;

const SOON: Duration = Duration::from_secs(10);

/// A log that plays a history up to a point, then does what the script says, once for each time it is followed.
pub(crate) struct ScriptedLog {
    history: Vec<Recorded>,
    script: Mutex<Vec<Act>>,
    pub(crate) followed: AtomicUsize,
    /// What the leader says of access streams.
    pub(crate) leader: Mutex<Result<Position, LogError>>,
    asked: Mutex<Vec<StreamId>>,
}

pub(crate) enum Act {
    /// Plays up to this many commits, then fails so.
    Fail { upto: usize, with: LogError },
    /// Plays everything and lives on without a word.
    FallSilent,
    /// Plays everything and never says that this was all.
    Backlog,
    /// Plays everything, then the last commit once more.
    Repeat,
    /// Cannot be followed at all.
    Refuse(LogError),
}

impl ScriptedLog {
    pub(crate) fn new(history: Vec<Recorded>, script: impl IntoIterator<Item = Act>) -> Arc<Self> {
        let mut script: Vec<_> = script.into_iter().collect();
        script.reverse();
        Arc::new(Self {
            history,
            script: Mutex::new(script),
            followed: AtomicUsize::new(0),
            leader: Mutex::new(Ok(Position::START)),
            asked: Mutex::default(),
        })
    }

    pub(crate) fn asked(&self) -> Vec<StreamId> {
        std::mem::take(&mut self.asked.lock())
    }
}

#[async_trait]
impl EventLog for ScriptedLog {
    async fn append(&self, _: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        Err(AppendError::Malformed)
    }

    async fn read_stream(&self, _: &StreamId, _: Position, _: usize) -> Result<Vec<Recorded>, LogError> {
        Ok(Vec::new())
    }

    async fn last_of_stream(&self, _: &StreamId) -> Result<Option<Recorded>, LogError> {
        Ok(None)
    }

    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        self.asked.lock().extend_from_slice(streams);
        Ok(vec![self.leader.lock().clone()?; streams.len()])
    }

    async fn read(&self, after: Position, _: usize, _: &Filter) -> Result<Page, LogError> {
        Ok(Page { commits: Vec::new(), read_up_to: after, at_head: true })
    }

    async fn follow(
        &self,
        from: Checkpoint,
        _: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        self.followed.fetch_add(1, Ordering::Relaxed);
        let act = self.script.lock().pop().unwrap_or(Act::FallSilent);
        let identity = LogIdentity("one".to_owned());
        let after = usize::try_from(from.position.get()).unwrap();
        let play = |upto: usize| {
            let commits = self.history[after.min(upto)..upto].iter().map(|recorded| {
                let proof = Some(CheckpointProof { identity: identity.clone(), digest: [0; 32] });
                let checkpoint = Checkpoint { position: recorded.position, proof };
                let bytes = envforge_eventlog::schema::encode(&recorded.commit).unwrap().len();
                Ok(Follow::Commit { recorded: recorded.clone(), checkpoint, bytes })
            });
            commits.collect::<Vec<_>>()
        };
        let all = self.history.len();
        let caught = Ok(Follow::Caught { position: Position::new(all as u64) });
        let items = match act {
            Act::Refuse(error) => return Err(error),
            Act::Fail { upto, with } => play(upto).into_iter().chain([Err(with)]).collect(),
            Act::Repeat => play(all).into_iter().chain(play(all).into_iter().next_back()).collect(),
            Act::Backlog => play(all),
            Act::FallSilent => play(all).into_iter().chain([caught]).collect::<Vec<_>>(),
        };
        Ok(stream::iter(items).chain(stream::pending()).boxed())
    }

    async fn head(&self) -> Result<Head, LogError> {
        let position = Position::new(self.history.len() as u64);
        Ok(Head { identity: LogIdentity("one".to_owned()), position })
    }
}

pub(crate) fn quick() -> HotConfig {
    HotConfig {
        reconnect_min: Duration::from_millis(1),
        reconnect_max: Duration::from_millis(4),
        ..HotConfig::default()
    }
}

fn start(log: &Arc<ScriptedLog>, config: HotConfig) -> Arc<Hot> {
    Hot::start_with(Arc::clone(log) as SharedLog, config, CancellationToken::new())
}

/// Everything that the views say, in an order of its own.
fn told(hot: &Hot) -> String {
    let people = [OWNER, DEVELOPER, 77].map(|number| {
        let actor = envforge_domain::commit::Actor::User(user(number));
        hot.authorization.facts(&actor, Some(session(number)), &Resource::Organization(org(1)), NOW)
    });
    let links = [1, 2].map(|number| {
        let actor = envforge_domain::commit::Actor::LinkVisitor { link: link(number), session: None };
        let view = hot.gateway.link(link(number)).map(|view| {
            let closed = RouteFamily::ALL.map(|family| view.closers.reason(family));
            let families = view.families.display();
            (view.phase, view.generation, view.expires_at, families, view.wakes_left, closed)
        });
        (
            hot.authorization.facts(&actor, None, &Resource::Organization(org(1)), NOW),
            view,
            hot.resources.link(link(number)),
        )
    });
    let sessions = [1, 2, 3].map(|number| hot.gateway.session(&cookie(number)));
    let runtime = hot.gateway.runtime(workspace(1)).borrow().clone();
    let hosts = (hot.placement.host_of(workspace(1)), hot.placement.placed(host(1)));
    format!("{people:?}\n{links:?}\n{sessions:?}\n{runtime:?}\n{hosts:?}\n{:?}", hot.position())
}

/// A history with something of everything.
fn long_story() -> Story {
    use envforge_domain::access::{Role, Scope};
    use envforge_domain::dev_link::{Generation, RouteFamilies};
    use envforge_domain::host::{Capacity, HostEvent};
    use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeCause};
    let mut story = Story::new();
    story.link(2, OWNER);
    story.visit(2, 2);
    story.visit(1, 3);
    story.on_link(1, DevLinkEvent::AllowlistChanged { families: RouteFamilies::NONE.with(RouteFamily::Web) });
    story.on_link(1, DevLinkEvent::Rotated { generation: Generation(2), issued_at: NOW, expires_at: LATER });
    story.on_link(2, DevLinkEvent::WakeSpent { epoch: Epoch(1), session: session(2) });
    story.grant(role(DEVELOPER, Role::Developer, Scope::Project(project(1)), Some(UnixMillis::new(NOW.get() + 5))));
    let capacity = Capacity { cpu_millicores: 10, memory_mib: 10 };
    story.host(1, 1, capacity);
    story.on_host(1, 1, HostEvent::Placed { workspace: workspace(1), needs: capacity });
    story.on_runtime(vec![RuntimeEvent::WakeRequested {
        epoch: Epoch(1),
        workspace: workspace(1),
        project: project(1),
        cause: WakeCause::Link { link: link(2), session: session(2) },
    }]);
    story.on_link(2, DevLinkEvent::Revoked { reason: None });
    story
}

#[tokio::test]
async fn the_same_history_gives_the_same_views_however_often_the_log_was_lost() {
    let history = long_story().history;
    let smooth = start(&ScriptedLog::new(history.clone(), []), quick());
    smooth.caught_up().await.unwrap();
    let lost = |upto| Act::Fail { upto, with: LogError::Unavailable("gone".to_owned()) };
    let acts = (0..history.len()).map(lost);
    let log = ScriptedLog::new(history.clone(), acts);
    let bumpy = start(&log, quick());
    bumpy.caught_up().await.unwrap();
    assert_eq!(log.followed.load(Ordering::Relaxed), history.len() + 1);
    assert_eq!(told(&smooth), told(&bumpy));
    assert!(told(&smooth).contains("Revoked") && told(&smooth).contains("Waking"), "{}", told(&smooth));
}

#[tokio::test]
async fn another_log_in_its_place_closes_everything_for_good() {
    let swapped = |upto| Act::Fail {
        upto,
        with: LogError::NotTheSameLog(NotTheSameLog::Replaced { found: "another".to_owned() }),
    };
    let undecodable = LogError::Undecodable { position: Position::new(5), reason: "new".to_owned() };
    for act in [swapped(12), Act::Refuse(undecodable)] {
        let history = Story::new().history;
        let lost = Act::Fail { upto: history.len(), with: LogError::Unavailable("gone".to_owned()) };
        let log = ScriptedLog::new(history, [lost, act]);
        let hot = start(&log, quick());
        let error = hot.wait_for(Position::new(1_000), SOON).await.unwrap_err();
        assert!(matches!(error, Stale::Stopped { .. }), "{error}");
        assert_eq!(hot.fresh(), Err(error));
        assert!(hot.failed().is_some() && hot.gateway.freshness().failed);
        assert!(hot.gateway.link(link(1)).unwrap().closers.of(RouteFamily::Web).is_cancelled());
        assert_eq!(log.followed.load(Ordering::Relaxed), 2, "nothing is followed after that");
    }
}

#[tokio::test]
async fn a_commit_told_twice_is_never_folded_twice() {
    let hot = start(&ScriptedLog::new(Story::new().history, [Act::Repeat]), quick());
    let error = hot.wait_for(Position::new(1_000), SOON).await.unwrap_err();
    assert!(error.to_string().contains("commits are missing"), "{error}");
}

#[tokio::test]
async fn waiting_has_an_end() {
    let story = Story::new();
    let end = Position::new(story.history.len() as u64);
    let hot = start(&ScriptedLog::new(story.history, []), quick());
    hot.wait_for(end, SOON).await.unwrap();
    let error = hot.wait_for(end.next(), Duration::from_millis(5)).await.unwrap_err();
    assert_eq!(error, Stale::Behind { position: end, wanted: end.next(), waited_ms: 5 });
}

#[tokio::test]
async fn a_silent_log_makes_stale() {
    let config = HotConfig { staleness_max: Duration::ZERO, ..quick() };
    let hot = start(&ScriptedLog::new(Story::new().history, []), config);
    hot.caught_up().await.unwrap();
    assert!(matches!(hot.fresh(), Err(Stale::Silent { limit_ms: 0, .. })));
}

struct StoppedClock(UnixMillis);

impl envforge_domain::time::Clock for StoppedClock {
    fn now(&self) -> UnixMillis {
        self.0
    }
}

#[tokio::test]
async fn a_backlog_makes_fresh_only_as_far_as_it_is_recent() {
    let history = Story::new().history;
    let (end, newest) = (Position::new(history.len() as u64), history.last().unwrap().recorded_at);
    let played = async |age: Duration| {
        let at = UnixMillis::new(newest.get() + u64::try_from(age.as_millis()).unwrap());
        let config = HotConfig { clock: Some(Arc::new(StoppedClock(at))), ..quick() };
        let hot = start(&ScriptedLog::new(history.clone(), [Act::Backlog]), config);
        hot.wait_for(end, SOON).await.unwrap();
        hot
    };
    // A link may have been revoked in what is still to come.
    let old = played(Duration::from_secs(60)).await;
    assert!(matches!(old.fresh(), Err(Stale::Silent { .. })), "{:?}", old.silence());
    let recent = played(Duration::from_secs(3)).await;
    recent.fresh().unwrap();
    assert!(recent.silence() >= Duration::from_secs(3), "it was current when it was recorded, not when it came");
    let unknown = start(&ScriptedLog::new(history.clone(), [Act::Backlog]), quick());
    unknown.wait_for(end, SOON).await.unwrap();
    assert!(unknown.fresh().is_err(), "without a clock the log's own word alone counts");
}

#[tokio::test]
async fn stopping_frees_whoever_waits() {
    let stop = CancellationToken::new();
    let log = ScriptedLog::new(Vec::new(), []);
    let hot = Hot::start_with(log as SharedLog, quick(), stop.clone());
    let waiting = tokio::spawn({
        let hot = Arc::clone(&hot);
        async move { hot.wait_for(Position::new(1), SOON).await }
    });
    stop.cancel();
    assert!(matches!(waiting.await.unwrap(), Err(Stale::Stopped { .. })));
}

#[tokio::test]
async fn the_embedded_log_is_followed_from_its_first_commit_and_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = envforge_eventlog::sqlite::Config::new(directory.path());
    let log: SharedLog = Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap());
    let story = long_story();
    let mut last: std::collections::HashMap<StreamId, Position> = std::collections::HashMap::new();
    let (before, after) = story.history.split_at(7);
    let mut append = async |recorded: &Recorded| {
        let stream = recorded.commit.stream.clone();
        let expected = Expectation::LastAt(last.get(&stream).copied().unwrap_or(Position::START));
        let appended = log.append(vec![(recorded.commit.clone(), expected)]).await.unwrap();
        last.insert(stream, appended.last());
        appended.last()
    };
    for recorded in before {
        append(recorded).await;
    }
    let hot = Hot::start(Arc::clone(&log), CancellationToken::new());
    hot.caught_up().await.unwrap();
    assert_eq!(hot.position().get(), 7);
    for recorded in after {
        let position = append(recorded).await;
        hot.wait_for(position, SOON).await.unwrap();
    }
    let again = Hot::start(Arc::clone(&log), CancellationToken::new());
    again.caught_up().await.unwrap();
    assert_eq!(told(&hot), told(&again), "replayed is lived");
    hot.fresh().unwrap();
}
