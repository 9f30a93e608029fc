//! The frames of sleeping containers, in the order they came.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::ContainerKey;

/// How much may be held, for all containers of a pod together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames.
    pub packets: usize,
    /// Their bytes, link-layer headers included.
    pub bytes: usize,
}

/// One held frame.
pub(super) struct Held {
    pub container: ContainerKey,
    pub frame: Box<[u8]>,
    pub since: Instant,
}

/// Bounded. When it is full the newest frame is the one given up: what came first, the connection
/// requests, is what clients wait for, and a TCP sender transmits again what was given up.
pub(super) struct Queue {
    limits: Limits,
    frames: VecDeque<Held>,
    bytes: usize,
    overflow: BTreeMap<ContainerKey, u64>,
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            frames: VecDeque::new(),
            bytes: 0,
            overflow: BTreeMap::new(),
        }
    }

    /// Adds a frame, or counts it if there is no room.
    pub fn push(&mut self, container: ContainerKey, frame: &[u8], since: Instant) {
        if self.frames.len() >= self.limits.packets || self.bytes + frame.len() > self.limits.bytes
        {
            *self.overflow.entry(container).or_default() += 1;
            return;
        }
        self.bytes += frame.len();
        self.frames.push_back(Held {
            container,
            frame: frame.into(),
            since,
        });
    }

    /// Removes the frames of `container`, oldest first.
    pub fn take(&mut self, container: ContainerKey) -> VecDeque<Held> {
        let (taken, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.frames)
            .into_iter()
            .partition(|held| held.container == container);
        self.frames = rest;
        self.bytes -= taken.iter().map(|held| held.frame.len()).sum::<usize>();
        taken
    }

    /// How many frames of `container` were given up since the last time.
    pub fn take_overflow(&mut self, container: ContainerKey) -> u64 {
        self.overflow.remove(&container).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ContainerKey = ContainerKey(1);
    const B: ContainerKey = ContainerKey(2);

    fn queue(packets: usize, bytes: usize) -> Queue {
        Queue::new(Limits { packets, bytes })
    }

    fn first_bytes(frames: &VecDeque<Held>) -> Vec<u8> {
        frames.iter().map(|held| held.frame[0]).collect()
    }

    #[test]
    fn gives_back_in_order_and_keeps_what_is_not_asked_for() {
        let mut queue = queue(10, 100);
        for (container, byte) in [(A, 1), (B, 2), (A, 3), (B, 4)] {
            queue.push(container, &[byte], Instant::now());
        }
        assert_eq!(first_bytes(&queue.take(A)), [1, 3]);
        assert!(first_bytes(&queue.take(A)).is_empty());
        assert_eq!(first_bytes(&queue.take(B)), [2, 4]);
    }

    #[test]
    fn gives_up_the_newest_frame_when_full() {
        let mut queue = queue(2, 100);
        for byte in 1..=4 {
            queue.push(A, &[byte], Instant::now());
        }
        assert_eq!(queue.take_overflow(A), 2);
        assert_eq!(queue.take_overflow(A), 0);
        assert_eq!(first_bytes(&queue.take(A)), [1, 2]);
    }

    #[test]
    fn room_for_bytes_comes_back_when_frames_are_taken() {
        let mut queue = queue(10, 8);
        queue.push(A, &[1; 8], Instant::now());
        queue.push(B, &[2; 1], Instant::now());
        assert_eq!(queue.take_overflow(B), 1);
        queue.take(A);
        queue.push(B, &[3; 8], Instant::now());
        assert_eq!(first_bytes(&queue.take(B)), [3]);
    }
}
