//! Puts a Python process to sleep and wakes it, several times, and prints how long each step took:
//! `cargo run --release --example wake -- 50 500`. The numbers are the sizes in MiB; each request
//! touches 32 MiB, or a fifth where that is less. With `compressed` among them images are compressed
//! while it sleeps. Needs root.

#[path = "../tests/root/cage.rs"]
mod cage;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use cage::Cage;
use podmotion_pager::{CompressPolicy, FillStats, NotMoved, Pager};

const SERVER: &str = "
import os, sys
size, hot = int(sys.argv[1]) << 20, int(sys.argv[2]) << 20
piece = os.urandom(1 << 20)
if sys.argv[3] == 'records':
    piece = b''.join(b'{\"id\": %d, \"name\": \"customer %d\", \"sum\": %d}' % (n, n, n * n) for n in range(30000))
    piece = piece[:1 << 20].ljust(1 << 20, b' ')
data = bytearray(piece * (size >> 20))
for i in range(0, size, 4096): data[i:i+8] = i.to_bytes(8, 'little')
count = 0
print('ready', flush=True)
for line in sys.stdin:
    count += 1
    total = sum(data[:hot:4096])
    print(count, total, flush=True)
";

struct Server {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// `content` is `records`, or something that cannot be compressed.
    fn start(cage: &Cage, size: u64, hot: u64, content: &str) -> Self {
        let mut child = cage
            .command("python3".as_ref())
            .args(["-c", SERVER, &size.to_string(), &hot.to_string(), content])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self {
            child,
            requests,
            answers,
        };
        assert_eq!(server.answer(), "ready");
        server
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self) -> String {
        self.requests.write_all(b"x\n").unwrap();
        self.answer()
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let sizes = arguments.len();
    arguments.retain(|argument| argument != "compressed");
    let compress = arguments.len() < sizes;
    for size in arguments {
        let size: u64 = size.parse().unwrap();
        run(size, (size / 5).clamp(1, 32), compress);
    }
}

fn run(size: u64, hot: u64, compress: bool) {
    println!("{size} MiB, of which a request touches {hot}");
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut pager = Pager::create(directory.path()).unwrap();
    let cage = Cage::new();
    let content = if compress { "records" } else { "random" };
    let mut server = Server::start(&cage, size, hot, content);
    let started = Instant::now();
    server.ask();
    println!("  awake: {}", milliseconds(started.elapsed()));
    for round in 1..=6 {
        let started = Instant::now();
        let moved = match cage.sleep(pager) {
            Ok(moved) => moved,
            Err(NotMoved::Unchanged { error, .. }) => panic!("{error:?}"),
            Err(NotMoved::Lost(error)) => panic!("{error:?}"),
        };
        let total = started.elapsed();
        let stats = moved.stats();
        let speed = stats.scanned_bytes as f64 / stats.copy_time.as_secs_f64() / 1e9;
        println!(
            "  {round}. out {}: scan {} setup {} copy {} ({speed:.2} GB/s) register {} drop {}; looked at {} wrote {} missing {} left {} image {}",
            milliseconds(total),
            milliseconds(stats.scan_time),
            milliseconds(stats.setup_time),
            milliseconds(stats.copy_time),
            milliseconds(stats.register_time),
            milliseconds(stats.drop_time),
            mebibytes(stats.scanned_bytes),
            mebibytes(stats.written_bytes),
            mebibytes(stats.missing_bytes),
            mebibytes(stats.left_bytes),
            mebibytes(stats.image_bytes),
        );
        if compress {
            let compressing = moved.compress(CompressPolicy::at_once()).unwrap();
            let stats = compressing.wait().unwrap().unwrap();
            println!(
                "     compressed {} to {} in {}, {} of a processor; not {}, moved {}; image {}",
                mebibytes(stats.page_bytes),
                mebibytes(stats.compressed_bytes),
                milliseconds(stats.time),
                milliseconds(stats.cpu_time),
                mebibytes(stats.stubborn_bytes),
                mebibytes(stats.moved_bytes),
                mebibytes(stats.image_bytes),
            );
        }
        let pid = server.child.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let anonymous = status.lines().find(|line| line.starts_with("RssAnon"));
        let started = Instant::now();
        let filling = cage.wake(moved).unwrap();
        let prefetched = started.elapsed();
        server.ask();
        let answered = started.elapsed();
        let kind;
        let stats: FillStats;
        // Every second time the next sleep comes before the fill is complete.
        if round % 2 == 0 {
            kind = "paused";
            (pager, stats) = filling.pause().unwrap();
        } else {
            kind = "filled";
            (pager, stats) = filling.wait().unwrap();
        }
        println!(
            "     wake {}: first {} ({} in {}), then {} faults (first {:?}, zeros {}); {kind}, background {} in {}; asleep {}",
            milliseconds(answered),
            milliseconds(prefetched),
            mebibytes(stats.prefetch_bytes),
            milliseconds(stats.prefetch_time),
            stats.faults,
            stats.first_faults.first(),
            stats.zero_faults,
            mebibytes(stats.background_bytes),
            milliseconds(stats.background_time),
            anonymous.unwrap_or_default(),
        );
    }
    server.child.kill().unwrap();
    server.child.wait().unwrap();
}
