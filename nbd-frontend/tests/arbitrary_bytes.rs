//! Whatever bytes a client sends: no panic, no standstill, no output or memory without bound.

mod script;

use nbd_frontend::client::parse_reply;
use nbd_frontend::export::Export;
use nbd_frontend::negotiation::{Negotiation, State};
use nbd_frontend::protocol::*;
use nbd_frontend::session::{Parsed, Session};
use proptest::prelude::*;
use script::{Bytes, Site, context_data, open_data};

/// Output that one option can cause here, whatever it is: the listing of two exports.
const ONE_ANSWER_LEN: usize = 8 << 10;

/// Feeds pieces until the negotiation ends; checks its promises on the way.
fn feed_all(input: &[u8], piece_len: usize) {
    let mut negotiation = Negotiation::new();
    for piece in input.chunks(piece_len) {
        let mut piece = piece;
        loop {
            let mut out = Vec::new();
            let progress = negotiation.feed(piece, &Site, &mut out);
            assert!(out.len() <= OUTPUT_PAUSE_LEN + ONE_ANSWER_LEN, "{} bytes out", out.len());
            piece = &piece[progress.consumed..];
            match progress.state {
                State::NeedMore => {
                    assert!(piece.is_empty());
                    break;
                }
                State::SendFirst => assert!(progress.consumed > 0 && !out.is_empty()),
                State::Transmission { session, .. } => return requests(&session, piece),
                State::Close(_) => return,
            }
        }
    }
}

/// Parses until the session wants more or closes; every step must use input.
fn requests(session: &Session, mut input: &[u8]) {
    loop {
        let skip = match session.next_request(input) {
            Parsed::NeedMore { at_least } => {
                assert!(at_least > input.len());
                return;
            }
            Parsed::Request { consumed, request } => consumed + request.payload_len() as usize,
            Parsed::Invalid { consumed, discard_payload, .. } => {
                assert!(discard_payload <= PAYLOAD_MAX_BYTES);
                consumed + discard_payload as usize
            }
            Parsed::Disconnect { .. } | Parsed::Close(_) => return,
        };
        assert!(skip >= REQUEST_LEN);
        input = &input[skip.min(input.len())..];
    }
}

/// An option as a client might send it, right, wrong, or nonsense.
fn option() -> impl Strategy<Value = Bytes> {
    let data = prop_oneof![
        Just(Vec::new()),
        Just(open_data("disk", &[1, 2, 3])),
        Just(open_data("nope", &[])),
        Just(context_data("disk", &[BASE_ALLOCATION, "base:"])),
        proptest::collection::vec(any::<u8>(), 0..200),
        (0..5000u32, any::<u8>()).prop_map(|(len, byte)| vec![byte; len as usize]),
    ];
    (0..13u32, data, proptest::option::weighted(0.1, any::<u32>())).prop_map(
        |(option, data, wrong_len)| match wrong_len {
            None => Bytes::default().option(option, &data),
            Some(len) => Bytes::default().u64(OPTION_MAGIC).u32(option).u32(len).raw(&data),
        },
    )
}

fn request() -> impl Strategy<Value = Bytes> {
    let offset = prop_oneof![0..200_000u64, any::<u64>()];
    let len = prop_oneof![0..100_000u32, any::<u32>()];
    (0..10u16, prop_oneof![0..32u16, any::<u16>()], offset, len).prop_map(
        |(command, flags, offset, len)| Bytes::default().request(command, flags, offset, len),
    )
}

fn joined(parts: Vec<Bytes>, start: Bytes) -> Vec<u8> {
    parts.into_iter().fold(start, |all, part| all.raw(&part.0)).0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn noise_is_survived(
        input in proptest::collection::vec(any::<u8>(), 0..3000),
        piece in 1..97usize,
    ) {
        feed_all(&input, piece);
        requests(&Session::new(&Export::new("x", 1 << 20), false, None), &input);
        let _ = parse_reply(&input);
    }

    #[test]
    fn nearly_right_negotiations_are_survived(
        options in proptest::collection::vec(option(), 0..40),
        tail in proptest::collection::vec(request(), 0..5),
        piece in prop_oneof![1..50usize, Just(1 << 20)],
    ) {
        let mut input = joined(options, Bytes::hello());
        input.extend(joined(tail, Bytes::default()));
        feed_all(&input, piece);
    }

    #[test]
    fn nearly_right_requests_stay_inside_the_export(raw in request(), structured: bool) {
        let export = Export::new("x", 1 << 20);
        let session = Session::new(&export, structured, structured.then_some(1));
        let fields = RawRequest::decode(raw.0.first_chunk().unwrap());
        if let Parsed::Request { .. } = session.next_request(&raw.0) {
            let end = fields.offset.checked_add(fields.len.into()).expect("no wrap");
            prop_assert!(end <= 1 << 20);
            prop_assert!(fields.offset.is_multiple_of(512) && fields.len.is_multiple_of(512));
            prop_assert!(fields.flags < 32);
        }
        prop_assert_eq!(fields.encode().to_vec(), raw.0);
    }

    #[test]
    fn nearly_right_replies_are_survived(
        kind in prop_oneof![0..6u16, 0x8000..0x8004u16],
        len in prop_oneof![0..64u32, any::<u32>()],
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = Bytes::default().u32(CHUNK_MAGIC).u16(1).u16(kind).u64(9).u32(len).raw(&body);
        if let Ok(Some((used, _))) = parse_reply(&bytes.0) {
            prop_assert!(used >= CHUNK_HEADER_LEN && used <= bytes.0.len());
        }
    }
}

#[test]
fn a_flood_of_listings_is_answered_in_portions() {
    let mut input = Bytes::hello();
    for _ in 0..OPTIONS_MAX {
        input = input.option(OPT_LIST, &[]);
    }
    let mut negotiation = Negotiation::new();
    let mut rest = &input.0[..];
    let mut portions = 0;
    let mut sent = 0;
    while !rest.is_empty() {
        let mut out = Vec::new();
        let progress = negotiation.feed(rest, &Site, &mut out);
        rest = &rest[progress.consumed..];
        assert!(out.len() <= OUTPUT_PAUSE_LEN + ONE_ANSWER_LEN);
        portions += 1;
        sent += out.len();
        assert_eq!(matches!(progress.state, State::NeedMore), rest.is_empty());
    }
    assert!(portions > 2 && sent > 2 * OUTPUT_PAUSE_LEN);
}
