//! Appending: attempts until there is an answer, and what a refusal or a silence means.
//!
//! A retry after a lost acknowledgement looks like a conflict to a single server, which checks the expectation before the
//! message id, and like a duplicate to a cluster. So no refusal is believed before the streams themselves were asked.

use std::time::{Duration, Instant};

use envforge_domain::commit::{Commit, Expectation, Position};

use super::leader::{Leader, Stored};
use super::publish::{Attempt, publish};
use super::range;
use crate::prepared::{PreparedAppend, PreparedCommit};
use crate::{AppendError, Appended, LogError, NotTheSameLog};

/// Between two attempts; doubles from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// Commits of a stream looked through at once.
const PAGE_COMMITS_MAX: usize = 4_000;

/// An append's answer, as opposed to trouble on the way to it.
type Answer = Result<Appended, AppendError>;

pub(super) async fn append(leader: &Leader, append: &PreparedAppend, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    // Whether an attempt may have been stored whose answer we do not have.
    let mut in_doubt = false;
    let mut pause = PAUSE_MIN;
    loop {
        leader.in_place()?;
        let known = leader.known();
        let attempt = publish(leader, append).await;
        in_doubt |= matches!(attempt, Attempt::Stored(_) | Attempt::Unanswered(_));
        let settled = tokio::time::timeout_at(deadline.into(), settle(leader, append, known, attempt)).await;
        let settled =
            settled.unwrap_or_else(|_| Err(LogError::Unavailable("the log's leader answers too slowly".to_owned())));
        let trouble = match settled {
            Ok(Some(answer)) => return answer,
            Ok(None) => "another append to the stream is on its way".to_owned(),
            Err(LogError::Unavailable(reason)) => reason,
            Err(error) => return Err(error.into()),
        };
        if Instant::now() + pause >= deadline {
            tracing::warn!(trouble, in_doubt, "an append got no answer in time");
            return Err(if in_doubt { AppendError::Unknown } else { LogError::Unavailable(trouble).into() });
        }
        // Half of it at random: writers of one stream that met once shall not meet again.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What an attempt means for the caller; `None` where it may be repeated. `known`: where the log ended before, at least.
///
/// INVARIANT: no answer leaves here that came from another log in this one's place.
async fn settle(
    leader: &Leader,
    append: &PreparedAppend,
    known: Position,
    attempt: Attempt,
) -> Result<Option<Answer>, LogError> {
    let answer = match attempt {
        Attempt::Stored(last) => {
            // A batch is stored side by side, in its order.
            let first = (last + 1).saturating_sub(append.commits.len() as u64);
            if first <= known.get() {
                let found = format!("it stored a commit at {first}, although the log had reached {known}");
                return Err(leader.replaced(NotTheSameLog::Replaced { found }));
            }
            let positions = (first..=last).map(Position::new).collect();
            Some(Ok(Appended { positions, duplicate: false }))
        }
        Attempt::Duplicate(sequence) => Some(first_answer(leader, append, Position::new(sequence)).await?),
        Attempt::Refused => judge(leader, append).await?,
        // Nobody may take the messages because the stream is gone, which no other attempt would mend.
        Attempt::NotStored(reason) => match leader.head().await {
            Err(error @ LogError::NotTheSameLog(_)) => return Err(error),
            Ok(_) | Err(_) => return Err(LogError::Unavailable(reason)),
        },
        Attempt::Unanswered(reason) => return Err(LogError::Unavailable(reason)),
        Attempt::Impossible(reason) => Some(Err(LogError::Unavailable(reason).into())),
    };
    leader.confirm().await?;
    if let Some(Ok(appended)) = &answer {
        leader.saw(appended.last());
    }
    Ok(answer)
}

/// What the streams say about a refused append: it was stored before, its rights have moved, or a stream has moved on.
/// `None`: none of these, so another message was on its way and the attempt may be repeated.
async fn judge(leader: &Leader, append: &PreparedAppend) -> Result<Option<Answer>, LogError> {
    // Asked before the streams: an attempt that may still be on its way is not stored any more once a guard has moved.
    let mut moved = None;
    for guard in append.guards() {
        let last = leader.last(&leader.subject(&guard.stream)).await?;
        if last.map_or(Position::START, |last| last.position) != guard.last {
            moved = Some(AppendError::RightsMoved { stream: guard.stream.clone(), expected: guard.last });
            break;
        }
    }
    let mut conflict = None;
    for (index, commit) in append.commits.iter().enumerate() {
        let subject = leader.subject(&commit.stream);
        let last = leader.last(&subject).await?;
        let end = last.as_ref().map_or(Position::START, |last| last.position);
        let expected = match commit.expectation {
            Expectation::LastAt(expected) => expected,
            // Its own stream may stand anywhere.
            Expectation::Guards(_) => end,
        };
        // The append is whole or not at all: where its first commit is not, none of it is.
        if let Some(last) = last {
            if index == 0
                && let Some(found) = find(leader, append, &subject, expected, &last).await?
            {
                return first_answer(leader, append, found).await.map(Some);
            }
            if index > 0 && end == expected && last.decode()?.commit.command == append.command {
                // An attempt that was on its way may have come in since its first commit was looked for: a guard's own
                // stream may stand anywhere, so that it does not tell.
                return match first_commit(leader, append).await? {
                    Some(found) => first_answer(leader, append, found).await.map(Some),
                    None => Ok(Some(Err(AppendError::CommandReused { command: append.command }))),
                };
            }
        }
        if end != expected && conflict.is_none() {
            conflict = Some(AppendError::Conflict { stream: commit.stream.clone(), expected });
        }
    }
    Ok(moved.or(conflict).map(Err))
}

/// Where the append's first commit stands, if it does.
async fn first_commit(leader: &Leader, append: &PreparedAppend) -> Result<Option<Position>, LogError> {
    let Some(PreparedCommit { stream, expectation: Expectation::LastAt(expected), .. }) = append.commits.first() else {
        return Ok(None);
    };
    let subject = leader.subject(stream);
    match leader.last(&subject).await? {
        Some(last) => find(leader, append, &subject, *expected, &last).await,
        None => Ok(None),
    }
}

/// Where the command stands among the commits of the stream after `expected`, the last of which is given.
async fn find(
    leader: &Leader,
    append: &PreparedAppend,
    subject: &str,
    expected: Position,
    last: &Stored,
) -> Result<Option<Position>, LogError> {
    if last.decode()?.commit.command == append.command {
        return Ok(Some(last.position));
    }
    // Where this very append was stored, its expectation put it right here.
    let Some(first) = leader.next(subject, expected.next()).await? else { return Ok(None) };
    if first.decode()?.commit.command == append.command {
        return Ok(Some(first.position));
    }
    // The command may have been appended with another expectation: whoever decides on a stream as it was long ago pays
    // for pages, not for commits.
    let mut after = first.position;
    while after < last.position {
        let range = range::read(leader, subject, after, PAGE_COMMITS_MAX).await?;
        for stored in &range.commits {
            if stored.decode()?.commit.command == append.command {
                return Ok(Some(stored.position));
            }
        }
        let Some(end) = range.commits.last() else { break };
        after = end.position;
    }
    Ok(None)
}

/// The answer to a command one of whose commits stands at `found`: all its positions, or that the command id was used
/// for another request.
async fn first_answer(leader: &Leader, append: &PreparedAppend, found: Position) -> Result<Answer, LogError> {
    let Some(commit) = of_command(leader, append, found).await? else {
        return Err(LogError::Unavailable(format!("the server named {found}, where the command is not")));
    };
    if commit.request_digest != append.request_digest {
        return Ok(Err(AppendError::CommandReused { command: append.command }));
    }
    // The rest of a batch stands beside it.
    let (mut from, mut to, commits) = (found.get(), found.get(), append.commits.len() as u64);
    while to - from + 1 < commits && of_command(leader, append, Position::new(to + 1)).await?.is_some() {
        to += 1;
    }
    while to - from + 1 < commits && of_command(leader, append, Position::new(from - 1)).await?.is_some() {
        from -= 1;
    }
    Ok(Ok(Appended { positions: (from..=to).map(Position::new).collect(), duplicate: true }))
}

async fn of_command(leader: &Leader, append: &PreparedAppend, at: Position) -> Result<Option<Commit>, LogError> {
    // Nothing stands before the first position; asking for it would ask for the last one.
    if at == Position::START {
        return Ok(None);
    }
    let Some(stored) = leader.at(at).await? else { return Ok(None) };
    let commit = stored.decode()?.commit;
    Ok((commit.command == append.command).then_some(commit))
}
