//! Where the content of each slot is: in its own place, or compressed in another file.
//!
//! ```text
//!   pages.img        header | slot 1 | slot 2 | (hole) | (hole) | slot 5 | ...
//!                                                 |        |
//!   compressed.img   header | record of 3 | record of 4 | ...          see `compressed`
//! ```
//!
//! Invariants: a record's segment is not written to for as long as a slot has it; a slot that has a
//! record has no content in its own place. Whoever reads content holds the table meanwhile.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that are written to the compressed file in one go, and become free in one go. The first
/// one has the header.
pub(crate) const SEGMENT: u64 = 64 << 10;

/// Bits of the length in a packed place.
const LENGTH_BITS: u32 = 24;

/// Where the content of a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the slot.
    Plain,
    /// In the slot, and that will not change: it is not worth compressing.
    Stubborn,
    /// Compressed, in the other file.
    Record {
        /// Where it begins.
        offset: u64,
        /// Bytes of it.
        length: u64,
    },
}

impl Place {
    const STUBBORN: u64 = 1;

    /// In one word: there is one for each page of each sleeper.
    fn pack(self) -> u64 {
        match self {
            Self::Plain => 0,
            Self::Stubborn => Self::STUBBORN,
            Self::Record { offset, length } => offset << LENGTH_BITS | length,
        }
    }

    fn unpack(word: u64) -> Self {
        match word {
            0 => Self::Plain,
            Self::STUBBORN => Self::Stubborn,
            word => Self::Record {
                offset: word >> LENGTH_BITS,
                length: word & ((1 << LENGTH_BITS) - 1),
            },
        }
    }
}

/// The places of all slots.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// By slot; those behind the last are plain.
    packed: Vec<u64>,
}

/// Slots whose content can be read in one go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// They are in their own places.
    Plain { slots: u64 },
    /// Their records follow one another from `offset` on, `bytes` in all.
    Records { slots: u64, offset: u64, bytes: u64 },
}

impl Places {
    pub(crate) fn get(&self, slot: u64) -> Place {
        Place::unpack(self.packed.get(slot as usize).copied().unwrap_or_default())
    }

    pub(crate) fn set(&mut self, slot: u64, place: Place) {
        let slot = slot as usize;
        if self.packed.len() <= slot {
            self.packed.resize(slot + 1, 0);
        }
        self.packed[slot] = place.pack();
    }

    /// These slots have no content any more.
    pub(crate) fn forget(&mut self, slots: Range<u64>) {
        let known = self.packed.len();
        let (start, end) = (slots.start as usize, (slots.end as usize).min(known));
        if start < end {
            self.packed[start..end].fill(0);
        }
    }

    /// The first slots of `slots` that can be read in one go.
    pub(crate) fn piece(&self, slots: Range<u64>) -> Piece {
        let Place::Record { offset, length } = self.get(slots.start) else {
            let plain = |slot: &u64| !matches!(self.get(*slot), Place::Record { .. });
            let slots = slots.take_while(plain).count() as u64;
            return Piece::Plain { slots };
        };
        let (mut count, mut bytes) = (1, length);
        for slot in slots.skip(1) {
            match self.get(slot) {
                Place::Record {
                    offset: next,
                    length,
                } if next == offset + bytes => {
                    count += 1;
                    bytes += length;
                }
                _ => break,
            }
        }
        Piece::Records {
            slots: count,
            offset,
            bytes,
        }
    }

    /// Bytes of records in each segment that has any.
    pub(crate) fn live(&self) -> BTreeMap<u64, u64> {
        let mut live = BTreeMap::new();
        for word in &self.packed {
            if let Place::Record { offset, length } = Place::unpack(*word) {
                *live.entry(offset / SEGMENT).or_default() += length;
            }
        }
        live
    }

    /// Whether anything is compressed.
    pub(crate) fn has_records(&self) -> bool {
        let record = |word: &u64| matches!(Place::unpack(*word), Place::Record { .. });
        self.packed.iter().any(record)
    }
}

/// Segments with so much less in them that their records are worth moving, by what is in each:
/// those that are less than three quarters full, if that gives at least one of them back, or if
/// something else is going to be written.
pub(crate) fn sparse(live: &BTreeMap<u64, u64>, writes: bool) -> Vec<u64> {
    let sparse = || live.iter().filter(|(_, bytes)| **bytes < SEGMENT / 4 * 3);
    let (count, bytes) = sparse().fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes));
    match writes || bytes.div_ceil(SEGMENT / 16 * 15) < count {
        true => sparse().map(|(segment, _)| *segment).collect(),
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(offset: u64, length: u64) -> Place {
        Place::Record { offset, length }
    }

    #[test]
    fn what_is_not_known_is_plain() {
        let mut places = Places::default();
        assert_eq!(places.get(1000), Place::Plain);
        places.set(5, record(SEGMENT, 1));
        assert_eq!(places.get(4), Place::Plain);
        places.forget(0..1000);
        assert_eq!(places.get(5), Place::Plain);
        assert!(!places.has_records());
    }

    #[test]
    fn what_lies_together_is_read_together() {
        let mut places = Places::default();
        places.set(2, Place::Stubborn);
        places.set(3, record(SEGMENT, 100));
        places.set(4, record(SEGMENT + 100, 50));
        places.set(5, record(SEGMENT + 200, 50));
        assert_eq!(places.piece(1..9), Piece::Plain { slots: 2 });
        let two = Piece::Records {
            slots: 2,
            offset: SEGMENT,
            bytes: 150,
        };
        assert_eq!(places.piece(3..9), two);
        assert_eq!(places.piece(6..9), Piece::Plain { slots: 3 });
        let one = Piece::Records {
            slots: 1,
            offset: SEGMENT + 100,
            bytes: 50,
        };
        assert_eq!(places.piece(4..5), one);
    }

    #[test]
    fn half_empty_segments_are_moved_where_that_gives_one_back() {
        let live = BTreeMap::from([(1, SEGMENT), (2, SEGMENT / 2), (3, SEGMENT / 3), (4, 100)]);
        assert_eq!(sparse(&live, false), [2, 3, 4]);
        assert_eq!(
            sparse(&BTreeMap::from([(1, 100)]), false),
            [0; 0],
            "one stays"
        );
        assert_eq!(
            sparse(&BTreeMap::from([(1, 100)]), true),
            [1],
            "but is filled up"
        );
        let full = BTreeMap::from([(1, SEGMENT), (2, SEGMENT / 8 * 7)]);
        assert_eq!(sparse(&full, true), [0; 0]);
    }

    proptest! {
        #[test]
        fn a_place_is_as_it_was_set(offset in 1u64..1 << 39, length in 1u64..1 << LENGTH_BITS) {
            let mut places = Places::default();
            places.set(7, record(offset, length));
            prop_assert_eq!(places.get(7), record(offset, length));
            prop_assert_eq!(places.live(), BTreeMap::from([(offset / SEGMENT, length)]));
        }
    }
}
