//! Requests, good and bad: every rule about what a client may ask, and that the stream stays in
//! step after each breach.

mod script;

use nbd_frontend::export::Export;
use nbd_frontend::protocol::*;
use nbd_frontend::reply::WireError;
use nbd_frontend::session::{Command, Parsed, Session, StreamError};
use script::{Bytes, COOKIE, DISK_BYTES};

const END: u64 = DISK_BYTES;

fn session() -> Session {
    Session::new(&Export::new("disk", END), false, None)
}

fn session_with(change: impl FnOnce(&mut Export)) -> Session {
    let mut export = Export::new("disk", END);
    change(&mut export);
    export.check().expect("the test describes a possible export");
    Session::new(&export, true, Some(BASE_ALLOCATION_ID))
}

/// The request must be good, whole or cut anywhere.
fn good(session: &Session, command: u16, flags: u16, offset: u64, len: u32) -> Command {
    let bytes = Bytes::default().request(command, flags, offset, len).0;
    for cut in 0..bytes.len() {
        assert_eq!(session.next_request(&bytes[..cut]), Parsed::NeedMore { at_least: 28 });
    }
    let Parsed::Request { consumed, request } = session.next_request(&bytes) else {
        panic!("{command} {flags} {offset} {len}: {:?}", session.next_request(&bytes));
    };
    assert_eq!((consumed, request.cookie), (28, COOKIE));
    assert_eq!(request.payload_len(), if command == CMD_WRITE { len } else { 0 });
    request.command
}

/// The request must fail with this error, and the one behind it (and its payload) must work.
fn bad(session: &Session, command: u16, flags: u16, offset: u64, len: u32, want: WireError) {
    let payload_len = if command == CMD_WRITE { len as usize } else { 0 };
    let bytes = Bytes::default()
        .request(command, flags, offset, len)
        .raw(&vec![0x25; payload_len])
        .request(CMD_FLUSH, 0, 0, 0)
        .0;
    match session.next_request(&bytes) {
        Parsed::Invalid { consumed, cookie, error, text, discard_payload } => {
            assert_eq!((consumed, cookie, error), (28, COOKIE, want), "{text}");
            assert_eq!(discard_payload as usize, payload_len);
            assert!(!text.is_empty());
            let next = session.next_request(&bytes[consumed + payload_len..]);
            assert!(matches!(next, Parsed::Request { request, .. }
                if request.command == Command::Flush));
        }
        other => panic!("{command} {flags} {offset} {len}: {other:?}"),
    }
}

#[test]
fn good_requests_keep_their_fields() {
    let full = session_with(|export| {
        export.fast_zero = true;
        export.cache = true;
    });
    let (offset, len) = (4096, 8192);
    let fua = true;
    assert_eq!(
        good(&full, CMD_READ, CMD_FLAG_DF, offset, len),
        Command::Read { offset, len, df: true }
    );
    assert_eq!(
        good(&full, CMD_WRITE, CMD_FLAG_FUA, offset, len),
        Command::Write { offset, len, fua }
    );
    assert_eq!(good(&full, CMD_FLUSH, CMD_FLAG_FUA, 0, 0), Command::Flush);
    assert_eq!(
        good(&full, CMD_TRIM, CMD_FLAG_FUA, offset, len),
        Command::Trim { offset, len, fua }
    );
    let all = CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO;
    assert_eq!(
        good(&full, CMD_WRITE_ZEROES, all, offset, len),
        Command::WriteZeroes { offset, len, fua, no_hole: true, fast_zero: true }
    );
    assert_eq!(good(&full, CMD_CACHE, 0, offset, len), Command::Cache { offset, len });
    assert_eq!(
        good(&full, CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, offset, len),
        Command::BlockStatus { offset, len, req_one: true }
    );
}

#[test]
fn ranges_may_touch_the_end_but_not_pass_it() {
    let full = session_with(|export| export.cache = true);
    for (command, error) in [
        (CMD_READ, WireError::Invalid),
        (CMD_WRITE, WireError::NoSpace),
        (CMD_WRITE_ZEROES, WireError::NoSpace),
        (CMD_TRIM, WireError::Invalid),
        (CMD_CACHE, WireError::Invalid),
        (CMD_BLOCK_STATUS, WireError::Invalid),
    ] {
        good(&full, command, 0, END - 512, 512);
        bad(&full, command, 0, END - 512, 1024, error);
        bad(&full, command, 0, END, 512, error);
        bad(&full, command, 0, u64::MAX - 511, 512, error);
        bad(&full, command, 0, u64::MAX - 511, 1024, error);
    }
}

#[test]
fn requests_of_no_bytes_succeed_except_block_status() {
    let full = session_with(|export| export.cache = true);
    for command in [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE] {
        good(&full, command, 0, 0, 0);
        good(&full, command, 0, END, 0);
    }
    bad(&full, CMD_BLOCK_STATUS, 0, 0, 0, WireError::Invalid);
    bad(&full, CMD_WRITE, 0, END + 512, 0, WireError::NoSpace);
}

#[test]
fn only_the_flags_of_the_command_are_taken_and_only_if_offered() {
    let full = session_with(|export| {
        export.fast_zero = true;
        export.cache = true;
    });
    let of_command = [
        (CMD_READ, CMD_FLAG_FUA | CMD_FLAG_DF),
        (CMD_WRITE, CMD_FLAG_FUA),
        (CMD_FLUSH, CMD_FLAG_FUA),
        (CMD_TRIM, CMD_FLAG_FUA),
        (CMD_WRITE_ZEROES, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO),
        (CMD_CACHE, 0),
        (CMD_BLOCK_STATUS, CMD_FLAG_FUA | CMD_FLAG_REQ_ONE),
    ];
    for (command, allowed) in of_command {
        let len = if command == CMD_FLUSH { 0 } else { 512 };
        for bit in 0..16 {
            let flag = 1 << bit;
            if allowed & flag != 0 {
                good(&full, command, flag, 0, len);
            } else {
                bad(&full, command, flag, 0, len, WireError::Invalid);
            }
        }
    }
    // Without structured replies there is no DF, and this export has no FAST_ZERO.
    bad(&session(), CMD_READ, CMD_FLAG_DF, 0, 512, WireError::Invalid);
    bad(&session(), CMD_WRITE_ZEROES, CMD_FLAG_FAST_ZERO, 0, 512, WireError::Invalid);
}

#[test]
fn commands_that_are_unknown_or_not_offered_are_invalid() {
    let plain = session_with(|export| {
        export.trim = false;
        export.write_zeroes = false;
    });
    for command in [CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE, CMD_RESIZE, 9, u16::MAX] {
        bad(&plain, command, 0, 0, 512, WireError::Invalid);
    }
    bad(&session(), CMD_BLOCK_STATUS, 0, 0, 512, WireError::Invalid);
}

#[test]
fn flush_takes_no_range() {
    bad(&session(), CMD_FLUSH, 0, 512, 0, WireError::Invalid);
    bad(&session(), CMD_FLUSH, 0, 0, 512, WireError::Invalid);
}

#[test]
fn a_read_only_export_permits_no_change() {
    let frozen = session_with(|export| export.read_only = true);
    for command in [CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES] {
        bad(&frozen, command, 0, 0, 512, WireError::NotPermitted);
    }
    good(&frozen, CMD_READ, 0, 0, 512);
    good(&frozen, CMD_FLUSH, 0, 0, 0);
}

#[test]
fn each_feature_has_its_flag_and_a_read_only_export_offers_no_change() {
    let base = TFLAG_HAS_FLAGS | TFLAG_SEND_FLUSH | TFLAG_SEND_FUA;
    let mut export = Export::new("disk", END);
    (export.fast_zero, export.cache, export.rotational) = (true, true, true);
    let always = base | TFLAG_SEND_CACHE | TFLAG_ROTATIONAL | TFLAG_CAN_MULTI_CONN;
    let changes = TFLAG_SEND_TRIM | TFLAG_SEND_WRITE_ZEROES | TFLAG_SEND_FAST_ZERO;
    assert_eq!(export.transmission_flags(false), always | changes);
    assert_eq!(export.transmission_flags(true), always | changes | TFLAG_SEND_DF);
    export.read_only = true;
    assert_eq!(export.transmission_flags(false), always | TFLAG_READ_ONLY);
    (export.cache, export.rotational, export.multi_conn) = (false, false, false);
    assert_eq!(export.transmission_flags(false), base | TFLAG_READ_ONLY);
}

#[test]
fn alignment_is_demanded_unless_the_driver_serves_all() {
    let strict = session_with(|export| export.block_size_min = 4096);
    let lenient = session_with(|export| {
        export.block_size_min = 4096;
        export.serves_unaligned = true;
    });
    for command in [CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS] {
        for (offset, len) in [(512, 4096), (4096, 512), (1, 1), (4095, 4096)] {
            bad(&strict, command, 0, offset, len, WireError::Invalid);
            good(&lenient, command, 0, offset, len);
        }
        good(&strict, command, 0, 4096, 8192);
    }
}

#[test]
fn payloads_have_a_limit() {
    let max = PAYLOAD_MAX_BYTES;
    good(&session(), CMD_READ, 0, 0, max);
    good(&session(), CMD_WRITE, 0, 0, max);
    bad(&session(), CMD_READ, 0, 0, max + 512, WireError::Invalid);
    bad(&session(), CMD_READ, 0, 0, u32::MAX, WireError::Invalid);
    for len in [max + 1, 33 << 20, u32::MAX] {
        let bytes = Bytes::default().request(CMD_WRITE, 0, 0, len).0;
        assert_eq!(
            session().next_request(&bytes),
            Parsed::Close(StreamError::WriteTooLong { len })
        );
    }
    // A smaller limit of our own must not cost the client its connection.
    let small = session_with(|export| export.payload_max_bytes = 1 << 20);
    good(&small, CMD_WRITE, 0, 0, 1 << 20);
    bad(&small, CMD_WRITE, 0, 0, 2 << 20, WireError::Invalid);
    // Commands without payload go up to 4 GiB - 1.
    let huge = Export::new("huge", 1 << 40);
    let huge = Session::new(&huge, true, Some(BASE_ALLOCATION_ID));
    for command in [CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS] {
        good(&huge, command, 0, 1 << 39, u32::MAX - 511);
    }
}

#[test]
fn a_bad_magic_closes_as_soon_as_it_is_seen() {
    for bytes in [&[0x25, 0x60, 0x95, 0x14][..], &[0; 28], b"GET / HTTP/1.1\r\n"] {
        let got = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(session().next_request(bytes), Parsed::Close(StreamError::BadMagic { got }));
    }
}

#[test]
fn disconnect_is_never_an_error() {
    let bytes = Bytes::default().request(CMD_DISC, u16::MAX, 77, 99).0;
    let mut closing = session();
    closing.shut_down();
    assert_eq!(session().next_request(&bytes), Parsed::Disconnect { consumed: 28 });
    assert_eq!(closing.next_request(&bytes), Parsed::Disconnect { consumed: 28 });
}

#[test]
fn a_stopping_server_refuses_every_request_and_stays_in_step() {
    let mut closing = session();
    closing.shut_down();
    let bytes = Bytes::default().request(CMD_WRITE, 0, 0, 512).0;
    let Parsed::Invalid { error, discard_payload, .. } = closing.next_request(&bytes) else {
        panic!()
    };
    assert_eq!((error, discard_payload), (WireError::Shutdown, 512));
}

#[test]
fn impossible_exports_are_named() {
    let problem = |change: fn(&mut Export)| {
        let mut export = Export::new("x", END);
        change(&mut export);
        export.check().expect_err("this export is impossible").to_string()
    };
    assert!(problem(|e| e.size_bytes = 513).contains("513"));
    assert!(problem(|e| e.size_bytes = 1 << 63).contains("2^63"));
    assert!(problem(|e| e.block_size_min = 0).contains("power of two"));
    assert!(problem(|e| e.block_size_min = 1 << 17).contains("65536"));
    assert!(problem(|e| e.block_size_preferred = 256).contains("256"));
    assert!(problem(|e| e.payload_max_bytes = 64 << 20).contains("33554432"));
    assert!(problem(|e| e.payload_max_bytes = 8193).contains("8193"));
    assert!(problem(|e| e.name = "a\0".into()).contains("NUL"));
    assert!(problem(|e| (e.write_zeroes, e.fast_zero) = (false, true)).contains("zeroes"));
}
