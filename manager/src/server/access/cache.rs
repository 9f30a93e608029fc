//! Answers that are good for seconds.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// A bounded store of answers, each good for the same time.
#[derive(Debug)]
pub struct Cache<K, V> {
    entries: HashMap<K, (Instant, V)>,
    keep: Duration,
    limit: usize,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty one, of `limit` answers at most.
    pub fn new(keep: Duration, limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            keep,
            limit,
        }
    }

    /// The answer, unless it is too old at `now`.
    pub fn get(&self, key: &K, now: Instant) -> Option<V> {
        let (at, value) = self.entries.get(key)?;
        self.is_good(*at, now).then(|| value.clone())
    }

    /// Keeps an answer that was given at `now`. Where there is no room the oldest goes.
    pub fn put(&mut self, key: K, value: V, now: Instant) {
        if self.entries.len() >= self.limit {
            let keep = self.keep;
            self.entries
                .retain(|_, (at, _)| now.saturating_duration_since(*at) < keep);
        }
        if self.entries.len() >= self.limit {
            let oldest = self.entries.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.entries.remove(&key);
            }
        }
        self.entries.insert(key, (now, value));
    }

    fn is_good(&self, at: Instant, now: Instant) -> bool {
        now.saturating_duration_since(at) < self.keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn answers_are_good_for_their_time_only() {
        let start = Instant::now();
        let mut cache = Cache::new(5 * SECOND, 10);
        cache.put("a", 1, start);
        assert_eq!(cache.get(&"a", start + 4 * SECOND), Some(1));
        assert_eq!(cache.get(&"a", start + 5 * SECOND), None);
        assert_eq!(cache.get(&"b", start), None);
    }

    #[test]
    fn there_are_never_more_than_the_limit_and_the_oldest_goes_first() {
        let start = Instant::now();
        let mut cache = Cache::new(5 * SECOND, 3);
        for number in 0..100_u32 {
            cache.put(number, (), start + SECOND / 100 * number);
            assert!(cache.entries.len() <= 3);
        }
        let mut left: Vec<_> = cache.entries.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [97, 98, 99]);
    }
}
