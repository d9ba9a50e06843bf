//! What becomes of a root window, state by state.

use super::{
    OpenWindow, OverWindow, PackageChange, RootAccess, RootChanges, RootCloseout, RootEnded, RootLimits, RootMode,
    RootOver, RootTerms, RootWindowCommand, RootWindowEvent, RootWindowRefusal,
};
use crate::commit::Actor;
use crate::ids::UserId;
use crate::limits;
use crate::provenance::Independence;
use crate::runtime::reason_is_valid;
use crate::time::{Millis, UnixMillis};

type Decided = Result<Vec<RootWindowEvent>, RootWindowRefusal>;

pub(super) fn unknown(command: &RootWindowCommand) -> Decided {
    let RootWindowCommand::Request {
        by,
        window,
        project,
        workspace,
        mode,
        access,
        reason,
        length,
        pending,
        limits,
        now,
    } = command
    else {
        return Err(RootWindowRefusal::Unknown);
    };
    let requester = person(*by)?;
    check_limits(*mode, *length, limits)?;
    check_reason(Some(reason))?;
    // Break-glass has a bound of its own: the one that nobody has reviewed.
    if *mode == RootMode::Elevation && *pending >= limits::ROOT_REQUESTS_MAX {
        return Err(RootWindowRefusal::TooManyRequests { max: limits::ROOT_REQUESTS_MAX });
    }
    let terms = RootTerms {
        window: *window,
        project: *project,
        workspace: *workspace,
        requester,
        mode: *mode,
        access: *access,
        reason: reason.clone(),
        length: *length,
        requested_at: *now,
    };
    let requested = RootWindowEvent::Requested { terms, expires_at: now.plus(limits::ROOT_REQUEST_LIFETIME) };
    Ok(match mode {
        RootMode::Elevation => vec![requested],
        RootMode::BreakGlass => {
            vec![requested, RootWindowEvent::Opened { at: *now, ends_at: now.plus(*length) }]
        }
    })
}

pub(super) fn requested(terms: &RootTerms, expires_at: UnixMillis, command: &RootWindowCommand) -> Decided {
    let pending = |now: &UnixMillis| if *now < expires_at { Ok(()) } else { Err(RootWindowRefusal::Expired) };
    match command {
        RootWindowCommand::Request { .. } => Err(RootWindowRefusal::Exists),
        RootWindowCommand::Approve { by, independence, limits, now } => {
            let approver = independent(*by, terms, independence)?;
            pending(now)?;
            check_limits(terms.mode, terms.length, limits)?;
            let use_until = now.plus(limits::ROOT_APPROVAL_LIFETIME);
            Ok(vec![RootWindowEvent::Approved { approver, at: *now, use_until }])
        }
        RootWindowCommand::Deny { by, reason, now } => {
            let by = somebody_else(*by, terms)?;
            pending(now)?;
            check_reason(reason.as_deref())?;
            Ok(vec![RootWindowEvent::Denied { by, reason: reason.clone() }])
        }
        RootWindowCommand::Withdraw { by, .. } => {
            requester(*by, terms)?;
            Ok(vec![RootWindowEvent::Withdrawn])
        }
        RootWindowCommand::Revoke { by, reason, .. } => revoke(*by, reason),
        RootWindowCommand::Run { by, .. } => {
            requester(*by, terms)?;
            Err(RootWindowRefusal::NotApproved)
        }
        RootWindowCommand::ReportStarted { .. } | RootWindowCommand::ReportEnded { .. } => {
            Err(RootWindowRefusal::NoCommand)
        }
        RootWindowCommand::Expire { now } => expire(*now, expires_at),
        RootWindowCommand::Review { by, .. } => {
            somebody_else(*by, terms)?;
            Err(RootWindowRefusal::NothingToReview)
        }
    }
}

pub(super) fn approved(terms: &RootTerms, use_until: UnixMillis, command: &RootWindowCommand) -> Decided {
    match command {
        RootWindowCommand::Request { .. } => Err(RootWindowRefusal::Exists),
        RootWindowCommand::Approve { by, independence, .. } => {
            independent(*by, terms, independence)?;
            Ok(vec![])
        }
        RootWindowCommand::Deny { by, .. } => {
            somebody_else(*by, terms)?;
            Err(RootWindowRefusal::NotPending)
        }
        RootWindowCommand::Withdraw { by, .. } => {
            requester(*by, terms)?;
            Ok(vec![RootWindowEvent::Withdrawn])
        }
        RootWindowCommand::Revoke { by, reason, .. } => revoke(*by, reason),
        RootWindowCommand::Run { by, words, epoch, limits, now } => {
            requester(*by, terms)?;
            if *now >= use_until {
                return Err(RootWindowRefusal::Expired);
            }
            check_limits(terms.mode, terms.length, limits)?;
            check_words(terms.access, words)?;
            let epoch = epoch.ok_or(RootWindowRefusal::RuntimeAsleep)?;
            Ok(vec![
                RootWindowEvent::Opened { at: *now, ends_at: now.plus(terms.length) },
                RootWindowEvent::CommandAsked { words: words.clone(), epoch, at: *now },
            ])
        }
        RootWindowCommand::ReportStarted { .. } | RootWindowCommand::ReportEnded { .. } => {
            Err(RootWindowRefusal::NoCommand)
        }
        RootWindowCommand::Expire { now } => expire(*now, use_until),
        RootWindowCommand::Review { by, .. } => {
            somebody_else(*by, terms)?;
            Err(RootWindowRefusal::NothingToReview)
        }
    }
}

pub(super) fn open(open: &OpenWindow, command: &RootWindowCommand) -> Decided {
    let terms = &open.terms;
    match command {
        RootWindowCommand::Request { .. } => Err(RootWindowRefusal::Exists),
        RootWindowCommand::Approve { by, .. } | RootWindowCommand::Deny { by, .. } => {
            somebody_else(*by, terms)?;
            Err(RootWindowRefusal::NotPending)
        }
        RootWindowCommand::Withdraw { by, now } => {
            requester(*by, terms)?;
            Ok(vec![RootWindowEvent::Withdrawn, open.closed(*now, None)])
        }
        RootWindowCommand::Revoke { by, reason, now } => {
            let mut events = revoke(*by, reason)?;
            events.push(open.closed(*now, None));
            Ok(events)
        }
        RootWindowCommand::Run { by, words, epoch, limits, now } => {
            requester(*by, terms)?;
            if *now >= open.ends_at.min(open.opened_at.plus(limits.length_max)) {
                return Err(RootWindowRefusal::Over);
            }
            if !limits.policy.allows(terms.mode) {
                return Err(RootWindowRefusal::NotAllowed { policy: limits.policy });
            }
            if !open.takes_another() {
                return Err(RootWindowRefusal::Used);
            }
            check_words(terms.access, words)?;
            let epoch = epoch.ok_or(RootWindowRefusal::RuntimeAsleep)?;
            Ok(vec![RootWindowEvent::CommandAsked { words: words.clone(), epoch, at: *now }])
        }
        RootWindowCommand::ReportStarted { now } => match &open.command {
            Some(command) if command.started_at.is_none() && *now < open.ends_at => {
                Ok(vec![RootWindowEvent::CommandStarted { at: *now }])
            }
            Some(command) if command.started_at.is_some() => Err(RootWindowRefusal::Used),
            Some(_) => Err(RootWindowRefusal::Over),
            None => Err(RootWindowRefusal::NoCommand),
        },
        RootWindowCommand::ReportEnded { ended } => match &open.command {
            Some(_) if !changes_fit(ended) => Err(RootWindowRefusal::TooManyChanges { max: limits::ROOT_CHANGES_MAX }),
            Some(command) if command.ended.is_some() => Ok(vec![]),
            Some(_) => {
                let told = RootWindowEvent::CommandEnded { ended: ended.clone() };
                // Its person may come back to another one.
                let stays = terms.access == RootAccess::Shell && ended.missed_its_person() && ended.at < open.ends_at;
                Ok(if stays { vec![told] } else { vec![told, open.closed(ended.at, Some(ended.clone()))] })
            }
            None => Err(RootWindowRefusal::NoCommand),
        },
        RootWindowCommand::Expire { now } => {
            // The host that runs a command kills it at the end and says so; it gets a moment for that.
            let running = open.command.as_ref().is_some_and(|command| command.ended.is_none());
            let patience = if running { limits::ROOT_CLOSEOUT_PATIENCE } else { Millis::ZERO };
            if *now < open.ends_at.plus(patience) {
                return Err(RootWindowRefusal::NotYetOver);
            }
            Ok(vec![open.closed(open.ends_at, None)])
        }
        RootWindowCommand::Review { by, .. } => {
            somebody_else(*by, terms)?;
            Err(RootWindowRefusal::NotYetOver)
        }
    }
}

pub(super) fn over(over: &OverWindow, command: &RootWindowCommand) -> Decided {
    let terms = &over.terms;
    match command {
        RootWindowCommand::Request { .. } => Err(RootWindowRefusal::Exists),
        RootWindowCommand::Approve { by, .. } => {
            somebody_else(*by, terms)?;
            Err(RootWindowRefusal::Over)
        }
        RootWindowCommand::Deny { by, .. } => {
            somebody_else(*by, terms)?;
            if over.over == RootOver::Denied { Ok(vec![]) } else { Err(RootWindowRefusal::Over) }
        }
        RootWindowCommand::Withdraw { by, .. } => {
            requester(*by, terms)?;
            Ok(vec![])
        }
        RootWindowCommand::Revoke { by, .. } => {
            person(*by)?;
            Ok(vec![])
        }
        RootWindowCommand::Run { by, .. } => {
            requester(*by, terms)?;
            Err(RootWindowRefusal::Over)
        }
        RootWindowCommand::ReportStarted { .. } => Err(RootWindowRefusal::Over),
        // What was closed while its command was still being killed.
        RootWindowCommand::ReportEnded { ended } => match &over.command {
            Some(_) if !changes_fit(ended) => Err(RootWindowRefusal::TooManyChanges { max: limits::ROOT_CHANGES_MAX }),
            Some(command) if command.ended.is_none() => {
                Ok(vec![RootWindowEvent::CommandEnded { ended: ended.clone() }])
            }
            Some(_) => Ok(vec![]),
            None => Err(RootWindowRefusal::NoCommand),
        },
        RootWindowCommand::Expire { .. } => Ok(vec![]),
        RootWindowCommand::Review { by, independence, justified, note, .. } => {
            let reviewer = independent(*by, terms, independence)?;
            if terms.mode != RootMode::BreakGlass {
                return Err(RootWindowRefusal::NothingToReview);
            }
            if over.reviewed.is_some() {
                return Err(RootWindowRefusal::ReviewedAlready);
            }
            check_reason(Some(note))?;
            Ok(vec![RootWindowEvent::Reviewed { reviewer, justified: *justified, note: note.clone() }])
        }
    }
}

fn revoke(by: Actor, reason: &Option<String>) -> Decided {
    let by = person(by)?;
    check_reason(reason.as_deref())?;
    Ok(vec![RootWindowEvent::Revoked { by, reason: reason.clone() }])
}

fn expire(now: UnixMillis, end: UnixMillis) -> Decided {
    if now < end { Err(RootWindowRefusal::NotYetOver) } else { Ok(vec![RootWindowEvent::Expired]) }
}

/// Only a person in a session of their own, whatever the policy's table says.
const fn person(by: Actor) -> Result<UserId, RootWindowRefusal> {
    match by {
        Actor::User(user) => Ok(user),
        Actor::LinkVisitor { .. } | Actor::Agent(_) | Actor::ServiceToken(_) | Actor::System(_) | Actor::Anonymous => {
            Err(RootWindowRefusal::PeopleOnly)
        }
    }
}

/// INVARIANT: whoever asked for a window neither approves nor denies nor reviews it, whatever roles they hold and how.
fn somebody_else(by: Actor, terms: &RootTerms) -> Result<UserId, RootWindowRefusal> {
    let user = person(by)?;
    if user == terms.requester { Err(RootWindowRefusal::OwnRequest) } else { Ok(user) }
}

/// INVARIANT: whoever approves or reviews a window could do so if all that its requester ever gave counted for nothing.
fn independent(by: Actor, terms: &RootTerms, independence: &Independence) -> Result<UserId, RootWindowRefusal> {
    let user = somebody_else(by, terms)?;
    match independence {
        Independence::Independent => Ok(user),
        Independence::Depends { on, others } => {
            Err(RootWindowRefusal::DeciderDepends { on: *on, others: others.clone() })
        }
    }
}

fn requester(by: Actor, terms: &RootTerms) -> Result<UserId, RootWindowRefusal> {
    let user = person(by)?;
    if user == terms.requester { Ok(user) } else { Err(RootWindowRefusal::NotYours) }
}

fn check_reason(reason: Option<&str>) -> Result<(), RootWindowRefusal> {
    if reason.is_some_and(|reason| !reason_is_valid(reason)) {
        return Err(RootWindowRefusal::Reason { max: limits::REASON_CHARS_MAX });
    }
    Ok(())
}

fn check_limits(mode: RootMode, length: Millis, limits: &RootLimits) -> Result<(), RootWindowRefusal> {
    if !limits.policy.allows(mode) {
        return Err(RootWindowRefusal::NotAllowed { policy: limits.policy });
    }
    let (min, max) = (limits::ROOT_WINDOW_MIN, limits.length_max.min(limits::ROOT_WINDOW_MAX));
    if length < min || length > max {
        return Err(RootWindowRefusal::LengthOutOfRange { min, max });
    }
    Ok(())
}

fn check_words(access: RootAccess, words: &[String]) -> Result<(), RootWindowRefusal> {
    match (access, words.is_empty()) {
        (RootAccess::Shell, true) => return Ok(()),
        (RootAccess::Shell, false) => return Err(RootWindowRefusal::ForShell),
        (RootAccess::Command, _) => {}
    }
    let (max_words, max_chars) = (limits::ROOT_COMMAND_WORDS_MAX, limits::ROOT_COMMAND_CHARS_MAX);
    let chars: usize = words.iter().map(|word| word.chars().count()).sum();
    let program = words.first().is_some_and(|program| !program.is_empty());
    if !program || words.len() > max_words || chars > max_chars || words.iter().any(|word| word.contains('\0')) {
        return Err(RootWindowRefusal::Command { max_words, max_chars });
    }
    Ok(())
}

impl OpenWindow {
    /// One command, or one shell at a time.
    fn takes_another(&self) -> bool {
        let Some(command) = &self.command else { return true };
        let lost = command.ended.as_ref().is_some_and(RootEnded::missed_its_person);
        self.terms.access == RootAccess::Shell && lost && self.before.len() + 1 < limits::ROOT_SHELLS_MAX
    }

    fn closed(&self, at: UnixMillis, ended: Option<RootEnded>) -> RootWindowEvent {
        let mut commands: Vec<_> = self.before.iter().chain(&self.command).cloned().collect();
        commands.iter_mut().for_each(|command| command.ended = command.ended.take().or_else(|| ended.clone()));
        RootWindowEvent::Closed {
            closeout: RootCloseout {
                requester: self.terms.requester,
                approver: self.approver,
                mode: self.terms.mode,
                access: self.terms.access,
                opened_at: self.opened_at,
                closed_at: at,
                commands,
            },
        }
    }
}

/// An event has its limits; hosts know them.
fn changes_fit(ended: &RootEnded) -> bool {
    let Some(RootChanges { packages, files, .. }) = &ended.changes else { return true };
    let max = limits::ROOT_CHANGES_MAX;
    let short = |text: &String| text.chars().count() <= limits::ROOT_CHANGE_CHARS_MAX;
    let package = |change: &PackageChange| {
        [Some(&change.name), change.before.as_ref(), change.after.as_ref()].into_iter().flatten().all(short)
    };
    packages.len() <= max
        && files.len() <= max
        && packages.iter().all(package)
        && files.iter().all(|change| short(&change.path))
}
