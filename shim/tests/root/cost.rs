//! What a packet costs while everybody is awake, by the kernel's own statistics.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use podmotion_bpf::GATE_PROGRAM;

use crate::rig::{Net, PORT, address, pins};

/// Far above what it is on a machine that has nothing else to do, for one that has: a test of the
/// order of magnitude. The figure itself is a benchmark's.
const LIMIT: Duration = Duration::from_nanos(1000);

fn runs() -> (Duration, u64) {
    let info = ProgramInfo::from_pin(pins().join(GATE_PROGRAM)).unwrap();
    (info.run_time(), info.run_count())
}

/// The least of some tries: the kernel's figure has in it what the hypervisor takes of a processor.
fn measure(what: &str, mut work: impl FnMut()) -> Duration {
    let mut once = || {
        let (time, count) = runs();
        work();
        let (time_after, count_after) = runs();
        let count = u32::try_from(count_after - count).unwrap();
        assert!(count >= 1000, "{count} packets");
        let each = (time_after - time) / count;
        eprintln!("{what}: {each:?} for each of {count} packets");
        each
    };
    (0..3).map(|_| once()).min().unwrap()
}

pub fn packet_of_an_awake_container_is_cheap() {
    const ROUNDS: usize = 5000;
    let net = Net::new();
    let _gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut buffer = [0; 1 << 16];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if length == 1 {
                        stream.write_all(&buffer[..1]).unwrap();
                    }
                }
            }
        });
        let statistics = enable_stats(Stats::RunTime).unwrap();
        let mut client = net.connect(false, server);
        client.set_nodelay(true).unwrap();
        let mut byte = [1];
        let small = measure("requests", || {
            for _ in 0..ROUNDS {
                client.write_all(&byte).unwrap();
                client.read_exact(&mut byte).unwrap();
            }
        });
        drop(client);
        let mut client = net.connect(false, server);
        let large = measure("bulk", || {
            for _ in 0..2000 {
                client.write_all(&[1; 1 << 16]).unwrap();
            }
        });
        drop((client, statistics));
        assert!(small <= LIMIT && large <= LIMIT, "{small:?} {large:?}");
    });
}
