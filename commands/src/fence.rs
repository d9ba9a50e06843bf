//! What keeps a command of a person, of a program with a service token or of a link's visitor in front of the revocation that
//! forbids it: its append guards the streams on which its permit rests, and says beside its events why it was allowed.
//!
//! Each guard needs a commit that carries it, for a commit expects one thing of one stream. So the record of the decision,
//! which belongs in the log anyway, carries them. EnvForge's own components rest on no streams; a host's agent is stopped by
//! its own stream's state and stays with single commits, which a log of one server takes a hundred times as fast (docs/adr/0005). Not here: finding out where the streams stood (projections' authorizer).

use envforge_domain::access::Permit;
use envforge_domain::commit::{Actor, Commit, Expectation, Position, Standing, StreamId, StreamKind};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::event::Event;

use crate::context::Context;
use crate::engine::commit;
use crate::error::CommandError;

/// An append as it may be sent.
pub(crate) enum Fenced {
    Ready(Vec<(Commit, Expectation)>),
    /// What was decided on is older than the permit: load and decide again.
    Behind,
}

/// Puts guards and the record of the decision behind what was decided, each commit of which expects where its own stream
/// ends. The first permit is the one that is recorded.
pub(crate) fn fenced(
    context: &Context,
    permits: &[&Permit],
    decided: Vec<(Commit, Position)>,
) -> Result<Fenced, CommandError> {
    let mut open: Vec<Standing> = Vec::new();
    for permit in permits {
        if !is_fenced(permit.actor()) {
            continue;
        }
        if permit.rests_on().is_empty() {
            return Err(CommandError::PermitRestsOnNothing { permitted: permit.action() });
        }
        for standing in permit.rests_on() {
            match open.iter().find(|known| known.stream == standing.stream) {
                None => open.push(standing.clone()),
                Some(known) if known.last == standing.last => {}
                // One of the permits is older than what moved the stream.
                Some(_) => return Err(CommandError::RightsMoved { stream: standing.stream.clone() }),
            }
        }
    }
    // A stream that the append writes itself is guarded by what is expected of it, if that is what the permit rests on.
    let by_visitor = permits.iter().any(|permit| matches!(permit.actor(), Actor::LinkVisitor { .. }));
    for (commit, at) in &decided {
        let Some(index) = open.iter().position(|standing| standing.stream == commit.stream) else { continue };
        let standing = open.swap_remove(index);
        // What a link itself says of its visitors was looked at when this was decided: they need not take turns.
        if by_visitor && commit.stream.kind() == StreamKind::DevLink {
            continue;
        }
        if *at > standing.last {
            return Err(CommandError::RightsMoved { stream: standing.stream });
        }
        if *at < standing.last {
            return Ok(Fenced::Behind);
        }
    }
    let mut append: Vec<_> = decided.into_iter().map(|(commit, at)| (commit, Expectation::LastAt(at))).collect();
    if let Some(recorded) = permits.iter().find(|permit| is_fenced(permit.actor())) {
        record(context, recorded, open, &mut append);
    }
    Ok(Fenced::Ready(append))
}

/// Whose appends are held to their rights stream by stream.
const fn is_fenced(actor: Actor) -> bool {
    match actor {
        Actor::User(_) | Actor::ServiceToken(_) | Actor::LinkVisitor { .. } | Actor::Anonymous => true,
        Actor::Agent(_) | Actor::System(_) => false,
    }
}

/// Adds the decision, with a guard on each stream that is left. Where the append writes all of them itself nothing is left
/// to carry, and the events beside each other say what was decided on.
fn record(context: &Context, permit: &Permit, mut open: Vec<Standing>, append: &mut Vec<(Commit, Expectation)>) {
    let own = match permit.actor() {
        Actor::User(user) => StreamId::user(permit.org(), user),
        Actor::ServiceToken(_) => StreamId::service_tokens(permit.org()),
        Actor::LinkVisitor { link, .. } => StreamId::dev_link(permit.org(), link),
        Actor::Agent(_) | Actor::System(_) | Actor::Anonymous => return,
    };
    // The actor's own stream first: a further guard stands in the decisions of its stream, and those are the actor's.
    open.sort_by_key(|standing| standing.stream != own);
    let mut open = open.into_iter();
    let Some(guarded) = open.next() else { return };
    let recorded = DecisionEvent::Recorded {
        action: permit.action().token().to_owned(),
        resource: permit.resource().display_id(),
        basis: permit.basis(),
        position: permit.position(),
        rests_on: permit.rests_on().to_vec(),
    };
    let mut beside = |stream: &StreamId, event: DecisionEvent, guarded: Standing| {
        let commit = commit(permit, context, stream, vec![Event::from(event)]);
        append.push((commit, Expectation::Guards(guarded)));
    };
    beside(&StreamId::decisions_on(&own), recorded, guarded);
    for guarded in open {
        let held = DecisionEvent::Held { last: guarded.last };
        beside(&StreamId::decisions_on(&guarded.stream), held, guarded);
    }
}
