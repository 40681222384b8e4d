//! The negotiation, as scripts of client bytes. Every script runs whole, cut at every offset and
//! byte by byte.

mod script;

use nbd_frontend::negotiation::{CloseReason, greeting};
use nbd_frontend::protocol::*;
use nbd_frontend::session::{Command, Parsed};
use script::*;

/// Runs options after the usual client flags and gives the replies and the end.
fn options(list: &[(u32, Vec<u8>)]) -> (Vec<(u32, u32, Vec<u8>)>, Run) {
    let bytes =
        list.iter().fold(Bytes::hello(), |bytes, (option, data)| bytes.option(*option, data));
    let run = negotiate_every_way(&bytes);
    (option_replies(&run.out), run)
}

/// One option must be answered by exactly one error of this type, and GO must still work.
fn refused(option: u32, data: Vec<u8>, error: u32) -> String {
    let (replies, run) = options(&[(option, data), (OPT_GO, open_data("disk", &[]))]);
    assert_eq!((replies[0].0, replies[0].1), (option, error));
    assert_eq!(replies[1].1, REP_INFO, "the next option still works");
    assert!(matches!(run.end, End::Open(..)));
    String::from_utf8(replies[0].2.clone()).expect("error texts are UTF-8")
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_zeroes() {
    assert_eq!(&greeting(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_close() {
    let run = negotiate_every_way(&Bytes::default().u32(4));
    assert_eq!(run.end, End::Closed(CloseReason::UnknownClientFlags { flags: 4 }));
}

#[test]
fn a_client_without_fixed_newstyle_is_served() {
    let bytes = Bytes::default().u32(0).option(OPT_EXPORT_NAME, b"disk");
    let run = negotiate_every_way(&bytes);
    assert!(matches!(run.end, End::Open(..)));
    assert_eq!(run.out.len(), 10 + EXPORT_NAME_PADDING_LEN);
    assert_eq!(run.out[..8], DISK_BYTES.to_be_bytes());
    assert!(run.out[10..].iter().all(|byte| *byte == 0));
}

#[test]
fn export_name_has_no_padding_when_the_client_wants_none() {
    let run = negotiate_every_way(&Bytes::hello().option(OPT_EXPORT_NAME, b""));
    assert_eq!(run.out.len(), 10);
    assert!(matches!(run.end, End::Open(name, _) if name == "disk"));
}

#[test]
fn export_name_of_a_refused_export_closes_with_the_reason() {
    for (name, text) in [
        (&b"sec"[..], "beta is secondary; the primary is alpha"),
        (b"nope", "no such export"),
        (b"\xff", "a string is not UTF-8"),
        (&[b'x'; 5000], "a string is longer than 4096 bytes"),
    ] {
        let run = negotiate(&Bytes::hello().option(OPT_EXPORT_NAME, name).0, &[]);
        assert!(run.out.is_empty());
        let End::Closed(CloseReason::ExportRefused { text: got, name }) = run.end else { panic!() };
        assert_eq!(got, text);
        assert!(name.len() <= 256);
    }
}

#[test]
fn a_bad_option_magic_closes() {
    let run = negotiate_every_way(&Bytes::hello().u64(7).u32(OPT_LIST).u32(0));
    assert_eq!(run.end, End::Closed(CloseReason::BadOptionMagic { got: 7 }));
}

#[test]
fn abort_is_acknowledged_then_closed_whatever_its_data() {
    let (replies, run) = options(&[(OPT_ABORT, b"why not".to_vec())]);
    assert_eq!(replies, [(OPT_ABORT, REP_ACK, vec![])]);
    assert_eq!(run.end, End::Closed(CloseReason::Aborted));
}

#[test]
fn list_names_all_exports_then_acknowledges() {
    let (replies, _) = options(&[(OPT_LIST, vec![])]);
    let server = |name: &str, text: &[u8]| Bytes::default().string(name).raw(text).0;
    assert_eq!(replies[0], (OPT_LIST, REP_SERVER, server("disk", b"a disk")));
    assert_eq!(replies[1], (OPT_LIST, REP_SERVER, server("plain", b"")));
    assert_eq!(replies[2], (OPT_LIST, REP_ACK, vec![]));
}

#[test]
fn info_and_go_tell_size_flags_and_block_sizes_and_what_was_asked() {
    for option in [OPT_INFO, OPT_GO] {
        let (replies, run) = options(&[(option, open_data("", &[1, 2, 3, 99, 1]))]);
        let flags = 0x016d; // HAS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN
        let expected = [
            Bytes::default().u16(INFO_EXPORT).u64(DISK_BYTES).u16(flags),
            Bytes::default().u16(INFO_BLOCK_SIZE).u32(512).u32(4096).u32(32 << 20),
            Bytes::default().u16(INFO_NAME).raw(b"disk"),
            Bytes::default().u16(INFO_DESCRIPTION).raw(b"a disk"),
        ];
        for (reply, expected) in replies.iter().zip(expected) {
            assert_eq!(*reply, (option, REP_INFO, expected.0));
        }
        assert_eq!(replies[4..], [(option, REP_ACK, vec![])]);
        assert_eq!(matches!(run.end, End::Open(..)), option == OPT_GO);
    }
}

#[test]
fn bytes_behind_go_belong_to_the_session() {
    let bytes = Bytes::hello()
        .option(OPT_GO, &open_data("disk", &[]))
        .request(CMD_READ, 0, 0, 512)
        .request(CMD_DISC, 0, 0, 0);
    let run = negotiate_every_way(&bytes);
    let End::Open(_, session) = run.end else { panic!() };
    let Parsed::Request { consumed, request } = session.next_request(&run.rest) else { panic!() };
    assert_eq!(request.command, Command::Read { offset: 0, len: 512, df: false });
    assert_eq!(session.next_request(&run.rest[consumed..]), Parsed::Disconnect { consumed: 28 });
}

#[test]
fn refusals_carry_their_text_and_the_negotiation_goes_on() {
    for option in [OPT_INFO, OPT_GO] {
        let text = refused(option, open_data("sec", &[]), REP_ERR_POLICY);
        assert_eq!(text, "beta is secondary; the primary is alpha");
        refused(option, open_data("late", &[]), REP_ERR_SHUTDOWN);
        refused(option, open_data("nope", &[]), REP_ERR_UNKNOWN);
        let text = refused(option, open_data("odd", &[]), REP_ERR_PLATFORM);
        assert!(text.contains("size 1000"), "{text}");
    }
}

#[test]
fn wrong_option_data_are_invalid() {
    let name = |len: u32| Bytes::default().u32(len);
    for option in [OPT_INFO, OPT_GO] {
        refused(option, vec![], REP_ERR_INVALID);
        refused(option, name(5).raw(b"disk").0, REP_ERR_INVALID);
        refused(option, name(u32::MAX).raw(b"disk").u16(0).0, REP_ERR_INVALID);
        refused(option, name(4).raw(b"disk").0, REP_ERR_INVALID);
        refused(option, name(4).raw(b"disk").u16(1).0, REP_ERR_INVALID);
        refused(option, name(4).raw(b"disk").u16(0).u16(0).0, REP_ERR_INVALID);
        refused(option, name(2).raw(b"\xff\xfe").u16(0).0, REP_ERR_INVALID);
        refused(option, name(2).raw(b"a\0").u16(0).0, REP_ERR_INVALID);
    }
    refused(OPT_LIST, vec![1], REP_ERR_INVALID);
    refused(OPT_STRUCTURED_REPLY, vec![1], REP_ERR_INVALID);
    refused(OPT_STARTTLS, vec![1], REP_ERR_INVALID);
    refused(OPT_LIST_META_CONTEXT, name(4).raw(b"disk").u32(2).string("base:").0, REP_ERR_INVALID);
    refused(OPT_LIST_META_CONTEXT, context_data("disk", &[])[..6].to_vec(), REP_ERR_INVALID);
    refused(OPT_LIST_META_CONTEXT, context_data("nope", &[]), REP_ERR_UNKNOWN);
    refused(OPT_SET_META_CONTEXT, context_data("disk", &[BASE_ALLOCATION]), REP_ERR_INVALID);
}

#[test]
fn what_we_do_not_have_is_refused_and_skipped() {
    refused(OPT_STARTTLS, vec![], REP_ERR_POLICY);
    refused(OPT_PEEK_EXPORT, b"disk".to_vec(), REP_ERR_UNSUP);
    refused(OPT_EXTENDED_HEADERS, vec![], REP_ERR_UNSUP);
    refused(0, vec![], REP_ERR_UNSUP);
    refused(u32::MAX, vec![7; 300], REP_ERR_UNSUP);
}

#[test]
fn long_options_are_skipped_and_monstrous_ones_close() {
    for (option, error) in [(77, REP_ERR_UNSUP), (OPT_GO, REP_ERR_TOO_BIG)] {
        let bytes = Bytes::hello()
            .option(option, &vec![0xee; OPTION_SKIP_MAX_LEN as usize])
            .option(OPT_GO, &open_data("disk", &[]));
        let run = negotiate(&bytes.0, &[5, 60_000, 900_000]);
        assert_eq!(option_replies(&run.out)[0].1, error);
        assert!(matches!(run.end, End::Open(..)));
    }
    let len = OPTION_SKIP_MAX_LEN + 1;
    let bytes = Bytes::hello().u64(OPTION_MAGIC).u32(77).u32(len);
    let run = negotiate_every_way(&bytes);
    assert_eq!(run.end, End::Closed(CloseReason::OptionTooLong { option: 77, len }));
}

#[test]
fn the_longest_kept_option_is_understood() {
    let infos = vec![INFO_NAME; (OPTION_KEEP_MAX_LEN as usize - 10) / 2];
    let data = open_data("disk", &infos);
    assert_eq!(data.len(), OPTION_KEEP_MAX_LEN as usize);
    let run = negotiate(&Bytes::hello().option(OPT_GO, &data).0, &[100]);
    assert_eq!(option_replies(&run.out).len(), 4, "asked a thousand times, answered once");
}

#[test]
fn endless_options_close() {
    let mut bytes = Bytes::hello();
    for _ in 0..=OPTIONS_MAX {
        bytes = bytes.option(OPT_STRUCTURED_REPLY, &[]);
    }
    assert_eq!(negotiate(&bytes.0, &[]).end, End::Closed(CloseReason::TooManyOptions));
}

#[test]
fn contexts_count_only_for_the_export_and_name_they_were_chosen_for() {
    let structured = (OPT_STRUCTURED_REPLY, vec![]);
    let set = |name: &str, queries: &[&str]| (OPT_SET_META_CONTEXT, context_data(name, queries));
    let go = |name: &str| (OPT_GO, open_data(name, &[]));
    let context = |list: &[(u32, Vec<u8>)]| {
        let End::Open(_, session) = options(list).1.end else { panic!() };
        session.base_allocation()
    };
    let base = ["qemu:dirty-bitmap:x", BASE_ALLOCATION];
    assert_eq!(context(&[structured.clone(), set("disk", &base), go("disk")]), Some(1));
    assert_eq!(context(&[structured.clone(), set("disk", &base), go("plain")]), None);
    assert_eq!(context(&[structured.clone(), set("", &base), go("disk")]), None);
    assert_eq!(context(&[structured.clone(), set("disk", &["base:"]), go("disk")]), None);
    assert_eq!(context(&[set("disk", &base), structured.clone(), go("disk")]), None);
    // A later choice replaces an earlier one, also when it fails.
    let twice = [structured.clone(), set("disk", &base), set("disk", &[]), go("disk")];
    assert_eq!(context(&twice), None);
    let failed = [structured, set("disk", &base), set("nope", &base), go("disk")];
    assert_eq!(context(&failed), None);
}

#[test]
fn listing_contexts_knows_the_wildcard() {
    let context = Bytes::default().u32(0).raw(BASE_ALLOCATION.as_bytes()).0;
    for (queries, listed) in [
        (&[][..], true),
        (&["base:"], true),
        (&[BASE_ALLOCATION], true),
        (&["base:other", "qemu:"], false),
    ] {
        let (replies, _) = options(&[(OPT_LIST_META_CONTEXT, context_data("disk", queries))]);
        let option = OPT_LIST_META_CONTEXT;
        let mut expected = vec![(option, REP_ACK, vec![])];
        if listed {
            expected.insert(0, (option, REP_META_CONTEXT, context.clone()));
        }
        assert_eq!(replies, expected, "{queries:?}");
    }
}

#[test]
fn structured_replies_may_be_asked_for_twice_and_bring_df() {
    let list = [
        (OPT_STRUCTURED_REPLY, vec![]),
        (OPT_STRUCTURED_REPLY, vec![]),
        (OPT_GO, open_data("plain", &[])),
    ];
    let (replies, run) = options(&list);
    assert_eq!((replies[0].1, replies[1].1), (REP_ACK, REP_ACK));
    let flags = Bytes::default().u16(INFO_EXPORT).u64(DISK_BYTES).u16(0x8d).0;
    assert_eq!(replies[2].2, flags, "HAS, FLUSH, FUA, DF");
    let End::Open(_, session) = run.end else { panic!() };
    assert!(session.structured());
}
