//! Tests that have a long variant, and choices that can be made again.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// Whether the long variants of tests run: `cargo xtask test --soak` sets `PODMOTION_SOAK=1`.
///
/// # Panics
/// When the variable has another value: a mistake there must not make a long run a short one.
#[must_use]
pub fn soak() -> bool {
    match env::var("PODMOTION_SOAK") {
        Err(env::VarError::NotPresent) => false,
        Ok(value) if value == "1" => true,
        value => panic!("PODMOTION_SOAK is 1 or not set, not {value:?}"),
    }
}

/// Numbers that are different in each run. The seed is printed, and `PODMOTION_SEED` sets it.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The run's.
    ///
    /// # Panics
    /// When `PODMOTION_SEED` is no number.
    #[must_use]
    pub fn of_this_run() -> Self {
        let seed = match env::var("PODMOTION_SEED") {
            Ok(seed) => seed.parse().expect("PODMOTION_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| u64::from(now.subsec_nanos()) ^ now.as_secs()),
        };
        println!("PODMOTION_SEED={seed}");
        Self(seed)
    }

    /// Another source, for a thread of its own. The same number gives the same source.
    #[must_use]
    pub fn apart(&self, number: u64) -> Self {
        let mut other = Self(self.0 ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03));
        other.below(1);
        other
    }

    /// A number from 0 on, less than `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let draw = |mut random: Random| [0; 8].map(|_| random.below(1000));
        assert_eq!(draw(Random(7)), draw(Random(7)));
        assert_eq!(draw(Random(7).apart(1)), draw(Random(7).apart(1)));
        assert_ne!(draw(Random(7).apart(1)), draw(Random(7).apart(2)));
    }
}
