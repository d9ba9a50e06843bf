//! What the fleet's fold makes of people who need a machine up with nothing awake there.

use envforge_domain::commit::{Actor, Commit, Component, Position, Recorded, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, ProjectId, SessionId, ShellId, UserId};
use envforge_domain::limits::MACHINE_USE_LASTS;
use envforge_domain::machine::{MachineCause, MachineEvent};
use envforge_domain::shell::{ShellEnd, ShellEnded, ShellEvent, ShellKind, ShellTerms};
use envforge_reactors::fleet::Known;

use super::*;

struct Story(Known, u64);

impl Story {
    /// One second after the one before. Answers the commit's id.
    fn tell(&mut self, stream: StreamId, event: impl Into<Event>) -> CommitId {
        self.1 += 1;
        let id = Uuid::from_u128(u128::from(self.1));
        let commit = Commit {
            id: CommitId::from_uuid(id),
            command: CommandId::from_uuid(id),
            request_digest: None,
            stream,
            actor: Actor::System(Component::Fleet),
            surface: Surface::Agent,
            correlation: CorrelationId::from_uuid(id),
            causation: None,
            decided_at: NOON,
            events: vec![event.into()],
        };
        let recorded = Recorded { position: Position::new(self.1), recorded_at: at(self.1), commit };
        self.0.apply(&recorded);
        recorded.commit.id
    }

    fn machine(&mut self, event: MachineEvent) -> CommitId {
        self.tell(StreamId::machine(org(1), host(1)), event)
    }

    fn view(&self) -> MachineView {
        self.0.fleet_of(org(1), NOON).machines.pop().unwrap()
    }
}

fn at(second: u64) -> UnixMillis {
    NOON.plus(Millis::from_secs(second))
}

#[test]
fn whoever_needs_a_machine_renews_its_grace_and_nothing_is_due_to_that() {
    let mut story = Story(Known::default(), 0);
    story.machine(MachineEvent::Requested { terms: terms(1, 1), cause: MachineCause::Demand });
    story.machine(MachineEvent::Launched { instance: "i-1".to_owned() });
    let started = story.machine(MachineEvent::Started);
    assert_eq!((story.view().used_at, story.view().needed_until), (at(3), UnixMillis::EPOCH));
    // By the log's clock, whatever theirs says.
    story.machine(MachineEvent::Used { cause: MachineCause::Logs, at: UnixMillis::EPOCH });
    assert_eq!((story.view().used_at, story.view().needed_until), (at(4), at(4).plus(MACHINE_USE_LASTS)));
    assert_eq!(story.0.machines()[&host(1)].commit, started, "a start that the provider took is not asked for again");

    let shell = ShellId::from_uuid(Uuid::from_u128(7));
    let (project, user) = (ProjectId::from_uuid(Uuid::nil()), UserId::from_uuid(Uuid::nil()));
    let terms = ShellTerms {
        shell,
        project,
        workspace: workspace(1),
        user,
        session: SessionId::from_uuid(Uuid::nil()),
        kind: ShellKind::Terminal,
        host: Some(host(1)),
        git: None,
        at: NOON,
    };
    story.tell(StreamId::shell(org(1), shell), ShellEvent::Connected { terms });
    assert_eq!((story.view().used_at, story.view().open_shells), (at(5), 1));
    let ended = ShellEnded { end: ShellEnd::Closed, code: None, at: NOON, duration: Millis::ZERO };
    let over = ShellEvent::Disconnected { user, workspace: workspace(1), ended };
    story.tell(StreamId::shell(org(1), shell), over);
    assert_eq!((story.view().used_at, story.view().open_shells), (at(6), 0), "the grace is from its end");
}
