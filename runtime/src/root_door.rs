//! How a person and the shell that was taken for their root window come together on its host, whichever of the two is there first.
//!
//! Not here: whether somebody may come (the API has asked), and what runs (`root`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_domain::ids::RootWindowId;
use envforge_domain::shell::{ShellFacts, ShellFailure, ShellInput, ShellOutput, TerminalSize};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use crate::shell::OpenShell;
use crate::shell_process::CHUNKS_MAX;

/// How long either waits for the other: the log lies between them.
const PATIENCE: Duration = Duration::from_secs(30);

/// Doors to shells that wait for their person.
#[derive(Clone, Default)]
pub(crate) struct Doors(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<HashMap<RootWindowId, oneshot::Sender<Visitor>>>,
    opened: Notify,
}

/// Whoever came, with their terminal.
pub(crate) struct Visitor {
    pub(crate) size: TerminalSize,
    pub(crate) term: String,
    pub(crate) input: mpsc::Receiver<ShellInput>,
    pub(crate) output: mpsc::Sender<ShellOutput>,
}

/// One door; dropped, nobody comes any more.
pub(crate) struct Door {
    doors: Doors,
    window: RootWindowId,
    knocked: oneshot::Receiver<Visitor>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.doors.open_doors().remove(&self.window);
    }
}

impl Door {
    /// Whoever came; `None` where nobody did in time.
    pub(crate) async fn knocked(mut self) -> Option<Visitor> {
        timeout(PATIENCE, &mut self.knocked).await.ok()?.ok()
    }
}

impl Doors {
    fn open_doors(&self) -> std::sync::MutexGuard<'_, HashMap<RootWindowId, oneshot::Sender<Visitor>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, window: RootWindowId) -> Door {
        let (knock, knocked) = oneshot::channel();
        self.open_doors().insert(window, knock);
        self.0.opened.notify_waiters();
        Door { doors: self.clone(), window, knocked }
    }

    /// INVARIANT: a door is gone through once.
    pub(crate) async fn knock(
        &self,
        window: RootWindowId,
        size: TerminalSize,
        term: String,
    ) -> Result<OpenShell, ShellFailure> {
        let waiting = async {
            loop {
                // Before looking, so that what opens in between is heard of.
                let opened = self.0.opened.notified();
                let door = self.open_doors().remove(&window);
                match door {
                    Some(door) => return door,
                    None => opened.await,
                }
            }
        };
        let nobody = || ShellFailure::NotStarted { reason: "its host began no shell as root".to_owned() };
        let door = timeout(PATIENCE, waiting).await.map_err(|_| nobody())?;
        let (input, fed) = mpsc::channel(CHUNKS_MAX);
        let (said, output) = mpsc::channel(CHUNKS_MAX);
        door.send(Visitor { size, term, input: fed, output: said }).map_err(|_| nobody())?;
        Ok(OpenShell { facts: ShellFacts::default(), input, output })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SIZE: TerminalSize = TerminalSize { columns: 80, rows: 24 };

    fn window(number: u128) -> RootWindowId {
        RootWindowId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn they_meet_whoever_is_there_first_and_once() {
        let doors = Doors::default();
        let a_moment = || tokio::time::sleep(Duration::from_millis(20)); // pause: so that one of them comes first
        for person_first in [true, false] {
            let knocking = async {
                if !person_first {
                    a_moment().await;
                }
                doors.knock(window(1), SIZE, "xterm".to_owned()).await
            };
            let opening = async {
                if person_first {
                    a_moment().await;
                }
                doors.open(window(1)).knocked().await
            };
            let (knocked, came) = tokio::join!(knocking, opening);
            assert!(knocked.is_ok() && came.unwrap().term == "xterm");
        }
        let again = doors.knock(window(1), SIZE, String::new());
        assert!(timeout(Duration::from_millis(50), again).await.is_err(), "the door was gone through");
    }
}
