//! Whose a held frame is.

use std::net::{IpAddr, SocketAddr};

use etherparse::IpSlice;

use super::Flow;

/// Length of an Ethernet header; the programs hold no frames with VLAN tags.
const ETHERNET: usize = 14;

/// The two ends of a TCP or UDP frame, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Addresses {
    /// Those of an Ethernet frame; `None` if it carries no ports.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let ip = IpSlice::from_slice(frame.get(ETHERNET..)?).ok()?;
        // Not the parsed transport header: etherparse leaves out that of a first fragment.
        let [
            source_high,
            source_low,
            destination_high,
            destination_low,
            ..,
        ] = *ip.payload().payload
        else {
            return None;
        };
        let (source, destination): (IpAddr, IpAddr) = (ip.source_addr(), ip.destination_addr());
        Some(Self {
            local: (
                destination,
                u16::from_be_bytes([destination_high, destination_low]),
            )
                .into(),
            remote: (source, u16::from_be_bytes([source_high, source_low])).into(),
        })
    }

    /// As a connection.
    pub fn flow(&self) -> Flow {
        Flow::new(self.local, self.remote)
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2([2; 6], [4; 6])
    }

    #[test]
    fn reads_both_ends_seen_from_the_pod() {
        let mut frame = Vec::new();
        ethernet()
            .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
            .tcp(40000, 8080, 1, 1024)
            .syn()
            .write(&mut frame, &[])
            .unwrap();
        let addresses = Addresses::of(&frame).unwrap();
        assert_eq!(addresses.local, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(addresses.remote, "10.0.0.9:40000".parse().unwrap());
    }

    #[test]
    fn reads_the_first_fragment_of_a_datagram() {
        let mut frame = Vec::new();
        ethernet()
            .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
            .udp(40000, 53)
            .write(&mut frame, &[7; 64])
            .unwrap();
        frame[ETHERNET + 6] |= 0x20; // more fragments follow
        assert_eq!(
            Addresses::of(&frame).unwrap().local,
            "10.0.0.1:53".parse().unwrap()
        );
    }

    #[test]
    fn reads_ipv6() {
        let mut frame = Vec::new();
        ethernet()
            .ipv6([0xfd; 16], [0xfe; 16], 64)
            .udp(1, 2)
            .write(&mut frame, &[])
            .unwrap();
        let addresses = Addresses::of(&frame).unwrap();
        assert_eq!((addresses.remote.port(), addresses.local.port()), (1, 2));
        assert_eq!(addresses.local.ip(), IpAddr::from([0xfe_u8; 16]));
    }

    proptest! {
        /// Frames are written by whoever can reach the pod.
        #[test]
        fn any_bytes_are_read_or_refused(
            mut frame in vec(any::<u8>(), 0..200),
            version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
            protocol in prop_oneof![Just(6_u8), Just(17), Just(0), Just(43), Just(44), Just(60), any::<u8>()],
        ) {
            for (at, value) in [(0, version), (6, protocol), (9, protocol)] {
                if let Some(byte) = frame.get_mut(ETHERNET + at) {
                    *byte = value;
                }
            }
            if let Some(length) = frame.get_mut(ETHERNET + 2..ETHERNET + 6) {
                length.copy_from_slice(&[0, 60, 0, 60]);
            }
            if let Some(addresses) = Addresses::of(&frame) {
                let ports = [addresses.remote.port(), addresses.local.port()];
                let bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
                prop_assert!(frame[ETHERNET..].windows(4).any(|window| window == bytes));
            }
        }
    }

    #[test]
    fn has_nothing_to_say_about_scraps() {
        for frame in [&[][..], &[0; 14], &[0x45; 20], &[0xff; 60]] {
            assert_eq!(Addresses::of(frame), None);
        }
    }
}
