//! What a stranger says to an agent that could hand over, and to one that would take over. Neither
//! ever does what only the other can, and the old one drains only if it has told the new one to begin.

#![no_main]

use agent_api::handover::{Action, Event, Message, New, Old, parse};
use culvert_fuzz::messages;
use libfuzzer_sys::fuzz_target;

const ABI: u32 = 1;

fuzz_target!(|data: &[u8]| {
    let (mut old, mut new) = (Old::default(), New::default());
    let (mut old_accepts, mut new_accepts, mut told) = (true, false, false);
    for message in messages(data) {
        let event = match message.choice % 5 {
            0 => Event::Closed,
            1 => Event::TimedOut,
            2 => Event::Prepared,
            _ => match parse(message.body) {
                Ok(message) => {
                    let again = serde_json::to_vec(&message).expect("a message can be written");
                    assert_eq!(parse(&again).as_ref(), Ok(&message));
                    Event::Received(message)
                }
                Err(why) => Event::Failed(why),
            },
        };
        for action in old.on(event.clone(), ABI) {
            match action {
                Action::Pause => old_accepts = false,
                Action::Accept => old_accepts = true,
                Action::Send(Message::Yours) => {
                    assert!(!old_accepts, "told to begin while it accepts");
                    told = true;
                }
                Action::Drain => assert!(told && !old_accepts),
                Action::Send(Message::Abort { .. }) | Action::SendAll | Action::GiveUp(_) => {}
                other => panic!("an old agent cannot {other:?}"),
            }
        }
        for action in new.on(event.clone()) {
            match action {
                Action::Accept => {
                    assert!(!new_accepts, "it does already");
                    new_accepts = true;
                }
                Action::Keep(Message::Node { .. } | Message::Pod { .. }) => {}
                Action::Send(Message::Ready | Message::Serving | Message::Abort { .. })
                | Action::Prepare
                | Action::GiveUp(_)
                | Action::BeginAlone => {}
                other => panic!("a new agent cannot {other:?}"),
            }
        }
        if old != Old::Over {
            assert_eq!(old.accepts(), old_accepts);
        }
        assert!(!new.accepts() || new_accepts);
    }
});
