//! How many connections there may be, at all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places that are taken.
#[derive(Clone, Debug)]
pub struct Seats {
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
    all: usize,
    each: usize,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    address: IpAddr,
}

impl Seats {
    /// `all` places, `each` of them at most for one address.
    pub fn new(all: usize, each: usize) -> Self {
        Self {
            taken: Arc::default(),
            all,
            each,
        }
    }

    /// A place for a connection from `address`, if there is one left.
    pub fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = address.to_canonical();
        let mut taken = self.lock();
        let own = taken.get(&address).copied().unwrap_or_default();
        if own >= self.each || taken.values().sum::<usize>() >= self.all {
            return None;
        }
        taken.insert(address, own + 1);
        Some(Seat {
            seats: self.clone(),
            address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Each change leaves it whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        match taken.get_mut(&self.address) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places() {
        let seats = Seats::new(3, 2);
        let [one, other, third] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let first = seats.take(one);
        let second = seats.take(one);
        assert!(first.is_some() && second.is_some());
        assert!(seats.take(one).is_none());
        // The same one, as a socket for both families shows it.
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1]);
        assert!(seats.take(mapped).is_none());
        let _third = seats.take(other).unwrap();
        assert!(seats.take(third).is_none());
        drop(first);
        assert!(seats.take(third).is_some());
        drop(second);
        assert!(!seats.lock().contains_key(&one));
    }
}
