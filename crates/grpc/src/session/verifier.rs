//! A client's source policy over the wire.
use async_trait::async_trait;
use fault::{Fault, Kind, Result};
use frontend::SourceMeta;
use job::{Verdict, Verifier};
use llb::SourceOp;
use oci::Platform;
use proto::moby::buildkit::v1::sourcepolicy::{PolicyAction, policysession as pb};
use wire::status::into_fault;

use super::wire_session::WireSession;
use crate::gateway::messages;

#[async_trait]
impl Verifier for WireSession {
    async fn check(&self, platform: Option<&Platform>, meta: &SourceMeta) -> Result<Verdict> {
        let request = pb::CheckPolicyRequest {
            platform: platform.map(llb::parts::platform_message),
            source: Some(messages::source_answer(meta.clone())),
            caps: Default::default(),
        };
        let answer = self.check_policy(request).await?;
        match answer.result {
            Some(pb::check_policy_response::Result::Request(request)) => {
                let request = messages::source_question(request).map_err(|status| into_fault(&status))?;
                Ok(Verdict::Resolve(Box::new(request)))
            }
            Some(pb::check_policy_response::Result::Decision(decision)) => verdict(decision),
            None => Err(Fault::new(Kind::Invalid, "no decision in policy response")),
        }
    }
}

fn verdict(decision: pb::DecisionResponse) -> Result<Verdict> {
    match PolicyAction::try_from(decision.action) {
        Ok(PolicyAction::Allow) => Ok(Verdict::Allow),
        Ok(PolicyAction::Convert) => match decision.update {
            Some(source) => Ok(Verdict::Convert(SourceOp { identifier: source.identifier, attrs: source.attrs })),
            None => Err(Fault::new(Kind::Invalid, "convert action requires updated source")),
        },
        other => {
            let action = other.map_or_else(|_| decision.action.to_string(), |action| action.as_str_name().to_owned());
            Ok(Verdict::Deny { action, messages: decision.deny_messages.into_iter().map(|m| m.message).collect() })
        }
    }
}
