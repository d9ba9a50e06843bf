//! A moment before somebody who was refused unheard hears so. A flood that waits for its answers comes slower by it and
//! loses its beat; a person does not notice.

use std::time::Duration;

use tokio::sync::Semaphore;

use crate::randomness::Randomness;

/// Shortest and longest moment: together they are what a crowd that comes all at once is spread over.
const MOMENT_MS: std::ops::Range<u64> = 20..148;
/// Who may wait at the same time. Whoever is refused beyond that hears it at once: waiting must not become what is flooded.
const WAITING_MAX: usize = 1_024;

/// Lets the refused wait.
pub(crate) struct Hesitation {
    places: Semaphore,
    randomness: Randomness,
}

impl Hesitation {
    pub(crate) fn new(randomness: Randomness) -> Self {
        Self { places: Semaphore::new(WAITING_MAX), randomness }
    }

    /// Returns after a random moment.
    pub(crate) async fn wait(&self) {
        let Ok(_place) = self.places.try_acquire() else { return };
        let mut byte = [0];
        // Without randomness the longest: nobody gets faster by it.
        let share = self.randomness.fill(&mut byte).map_or(u64::from(u8::MAX), |()| u64::from(byte[0]));
        let moment = MOMENT_MS.start + (MOMENT_MS.end - MOMENT_MS.start) * share / 256;
        tokio::time::sleep(Duration::from_millis(moment)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_waits_for_different_moments_and_a_crowd_beyond_the_places_not_at_all() {
        let hesitation = Hesitation::new(Randomness);
        let mut moments = Vec::new();
        for _ in 0..200 {
            let began = tokio::time::Instant::now();
            hesitation.wait().await;
            moments.push(u64::try_from(began.elapsed().as_millis()).expect("a moment is short"));
        }
        assert!(moments.iter().all(|moment| MOMENT_MS.contains(moment)), "{moments:?}");
        moments.sort_unstable();
        moments.dedup();
        assert!(moments.len() > 20, "{moments:?}");

        let began = tokio::time::Instant::now();
        let taken = hesitation.places.acquire_many(WAITING_MAX as u32).await.expect("it is never closed");
        hesitation.wait().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(taken);
    }
}
