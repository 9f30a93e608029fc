use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const GET: &[u8] =
    b"GET /healthz HTTP/1.1\r\nHost: 10.0.0.2:8080\r\nUser-Agent: kube-probe/1.34\r\n\
                     Accept: */*\r\nConnection: close\r\n\r\n";
const SECOND: Duration = Duration::from_secs(1);

fn is_probe(text: &str) -> bool {
    matches!(Head::read(text.as_bytes()), Head::Request(head) if head.kind == HeadKind::Probe)
}

fn is_other(text: &str) -> bool {
    Head::read(text.as_bytes()) == Head::Other
}

#[test]
fn a_probe_is_read_in_any_pieces() {
    for end in 0..GET.len() {
        assert_eq!(Head::read(&GET[..end]), Head::Partial, "{end}");
    }
    let mut more = GET.to_vec();
    more.extend_from_slice(b"whatever follows");
    let expected = Head::Request(RequestHead {
        bytes: GET,
        kind: HeadKind::Probe,
    });
    assert_eq!(Head::read(&more), expected);
}

#[test]
fn only_the_kubelets_probes_without_a_body_are_probes() {
    assert!(is_probe(
        "GET / HTTP/1.0\r\nuser-AGENT:kube-probe/1\r\ncontent-length: 0\r\n\r\n"
    ));
    for no in [
        "GET / HTTP/1.1\r\nUser-Agent: curl/8\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nUser-Agent: kube-lifecycle/1.34\r\n\r\n",
        "GET / HTTP/1.1\r\nX: kube-probe/1.34\r\n\r\n",
        "POST / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert!(!is_probe(no) && !is_other(no), "{no:?}");
    }
}

#[test]
fn a_hook_is_none_whatever_it_asks() {
    let hook = String::from_utf8_lossy(GET).replace("kube-probe", "kube-lifecycle");
    assert_eq!(Head::read(hook.as_bytes()).request(false), Request::Hook);
    assert_eq!(
        Head::read(b"SSH-2.0-x\r\n\r\n").request(false),
        Request::Other
    );
    let over_tls = Head::read(GET).request(true);
    assert_eq!(
        (over_tls.kind(), over_tls.subject().as_str()),
        ("https", "GET /healthz")
    );
}

#[test]
fn what_is_no_request_is_not_waited_for() {
    for no in [
        "\x16\x03\x01",
        " GET",
        "GET / HTTP/2\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert!(is_other(no), "{no:?}");
    }
    let long = format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(MAX_HEAD));
    assert!(is_other(&long));
}

#[test]
fn a_status_is_read_when_it_is_there() {
    assert_eq!(response_status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
    assert_eq!(response_status(b"HTTP/1.0 503\r\n"), Some(503));
    for no in [
        "",
        "HTTP/1.1 20",
        "HTTP/1.1 200",
        "HTTP/1.1 2000 ",
        "SSH-2.0-x 200 ",
    ] {
        assert_eq!(response_status(no.as_bytes()), None, "{no:?}");
    }
}

proptest! {
    /// Whatever comes, the head is a prefix of it that ends with an empty line, and more bytes change no
    /// answer that was given.
    #[test]
    fn any_bytes_are_read_or_refused(
        start in prop_oneof![Just(GET.to_vec()), Just(b"GET / HTTP/1.1\r\n".to_vec()), Just(Vec::new())],
        cut in 0_usize..200,
        noise in vec(any::<u8>(), 0..200),
        more in vec(any::<u8>(), 0..50),
    ) {
        let mut bytes = start[..cut.min(start.len())].to_vec();
        bytes.extend(noise);
        let all = [bytes.as_slice(), &more].concat();
        match Head::read(&bytes) {
            Head::Partial => {}
            Head::Request(head) => {
                prop_assert!(bytes.starts_with(head.bytes) && head.bytes.ends_with(b"\r\n\r\n"));
                prop_assert!(head.bytes.len() <= MAX_HEAD);
                prop_assert_eq!(Head::read(&all), Head::Request(head));
            }
            Head::Other => prop_assert_eq!(Head::read(&all), Head::Other),
        }
        let _ = response_status(&bytes);
    }
}

fn http(target: &str) -> Request {
    let head = format!("GET {target} HTTP/1.1\r\n\r\n").into_bytes();
    Request::Http {
        head: head.into(),
        tls: false,
    }
}

fn seen(last: Duration) -> PortSeen {
    PortSeen {
        port: 80,
        listening: true,
        last,
        gap: Some(SECOND),
    }
}

const NOW: Duration = Duration::from_secs(1000);
const IDLE: Duration = Duration::from_secs(900);

fn pending(book: &Book, seen: PortSeen) -> Option<bool> {
    let pending = book.pending(&[seen], IDLE, Some(NOW - 2 * SECOND), NOW);
    pending.map(|pending| pending.failed)
}

#[test]
fn a_port_with_probes_waits_for_one_that_passes() {
    let mut book = Book::default();
    assert_eq!(book.pending(&[], IDLE, None, NOW), None);
    assert_eq!(pending(&book, seen(NOW)), Some(false));
    book.note(80, http("/"), false, NOW);
    assert_eq!(pending(&book, seen(NOW)), Some(true));
    assert!(!book.knows(80, &http("/"), NOW));
    book.note(80, http("/"), true, NOW);
    assert_eq!(pending(&book, seen(NOW)), None);
    assert!(book.knows(80, &http("/"), NOW));
}

#[test]
fn at_first_every_probe_gets_its_chance_to_come() {
    let mut book = Book::default();
    book.note(80, http("/live"), true, NOW);
    let pending = |book: &Book, since| book.pending(&[seen(NOW)], IDLE, Some(since), NOW);
    assert!(pending(&book, NOW - SECOND).is_some());
    assert_eq!(pending(&book, NOW - 2 * SECOND), None);
    book.fall_asleep(IDLE, None);
    assert_eq!(pending(&book, NOW - SECOND), None);
}

#[test]
fn every_probe_that_still_comes_has_to_pass() {
    let mut book = Book::default();
    book.note(80, http("/live"), true, NOW);
    book.note(80, http("/ready"), false, NOW);
    assert_eq!(pending(&book, seen(NOW)), Some(true));
    // It has stopped coming.
    let later = NOW + STILL_COMING + SECOND;
    book.note(80, http("/live"), true, later);
    let at = seen(later);
    assert_eq!(book.pending(&[at], IDLE, Some(NOW), later), None);
}

#[test]
fn probes_that_stopped_coming_block_nothing() {
    let book = Book::default();
    assert_eq!(pending(&book, seen(NOW - STILL_COMING)), Some(false));
    let nanosecond = Duration::from_nanos(1);
    assert_eq!(pending(&book, seen(NOW - STILL_COMING - nanosecond)), None);
    let slow = PortSeen {
        gap: Some(60 * SECOND),
        ..seen(NOW - 100 * SECOND)
    };
    assert_eq!(pending(&book, slow), Some(false));
}

#[test]
fn a_port_that_nobody_listens_on_cannot_pass() {
    let mut book = Book::default();
    book.note(80, Request::Tcp, true, NOW);
    let deaf = PortSeen {
        listening: false,
        ..seen(NOW)
    };
    assert_eq!(pending(&book, deaf), Some(true));
}

#[test]
fn an_answer_from_before_the_last_use_is_asked_for_again() {
    let mut book = Book::default();
    book.note(80, http("/live"), true, IDLE - SECOND);
    book.note(80, http("/ready"), true, NOW);
    book.note(80, Request::Tcp, true, IDLE - SECOND);
    assert_eq!(pending(&book, seen(NOW)), Some(false));
    book.fall_asleep(IDLE, None);
    assert!(!book.knows(80, &http("/live"), NOW));
    assert!(book.knows(80, &http("/ready"), NOW));
    assert!(book.knows(80, &Request::Tcp, NOW));
}

#[test]
fn an_answer_while_it_is_watched_counts_whoever_uses_it() {
    let mut book = Book::default();
    book.note(80, http("/"), true, NOW - SECOND);
    let used = NOW;
    let at = seen(NOW);
    assert!(book.pending(&[at], used, None, NOW).is_some());
    assert_eq!(book.pending(&[at], used, Some(NOW - 2 * SECOND), NOW), None);
}

#[test]
fn what_cannot_be_told_apart_is_never_known() {
    let mut book = Book::default();
    book.note(80, Request::Other, true, NOW);
    assert_eq!(pending(&book, seen(NOW)), None);
    assert!(!book.knows(80, &Request::Other, NOW));
    assert!(!book.knows(81, &http("/"), NOW));
}

#[test]
fn the_book_has_an_end() {
    let mut book = Book::default();
    for number in 0..100 {
        let at = NOW + number * SECOND;
        book.note(80, http(&number.to_string()), true, at);
    }
    assert!(!book.knows(80, &http("83"), NOW + 200 * SECOND));
    assert!(book.knows(80, &http("84"), NOW + 200 * SECOND));
    assert!(book.knows(80, &http("99"), NOW + 200 * SECOND));
}

#[test]
fn a_request_says_what_it_is() {
    assert_eq!(http("/healthz?x=1").subject(), "GET /healthz?x=1");
    assert_eq!(http("/\x1b[2J").subject(), "GET /[2J");
    let health = Request::Grpc {
        message: b"\x0a\x04live".as_slice().into(),
    };
    assert_eq!((health.subject().as_str(), health.kind()), ("live", "grpc"));
}

#[test]
fn what_the_responder_says_is_understood() {
    use wire::{Message, Reply, Task};
    let https = |length| {
        Message::Asked(Request::Http {
            head: vec![b'x'; length].into(),
            tls: true,
        })
    };
    let said = "503".to_owned();
    for message in [
        https(MAX_HEAD),
        Message::Asked(Request::Grpc {
            message: [8, 1].into(),
        }),
        Message::Asked(Request::Other),
        Message::Asked(Request::Hook),
        Message::Outcome {
            passed: true,
            said: said.clone(),
        },
        Message::Outcome {
            passed: false,
            said,
        },
    ] {
        assert!(message.encode().len() <= wire::MAX_MESSAGE);
        assert_eq!(Message::decode(&message.encode()), Some(message));
    }
    let long = Message::decode(&https(MAX_HEAD + 1).encode());
    assert_eq!(long, Some(Message::Asked(Request::Other)));
    assert_eq!(Message::decode(b""), None);
    assert_eq!(Message::decode(b"?x"), None);
    for reply in [Reply::Known, Reply::Proxy, Reply::Refused] {
        assert_eq!(Reply::decode(reply.encode()), Some(reply));
    }
    assert_eq!(Task::parse("grpc"), Some(Task::Grpc));
    assert_eq!(Task::parse(""), None);
}
