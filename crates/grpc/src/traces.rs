//! `opentelemetry.proto.collector.trace.v1.TraceService`: spans of clients, kept for the traces of their builds.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use job::Service;
use job::trace::{Span, TraceId};
use proto::opentelemetry::proto::collector::trace::v1 as pb;
use proto::opentelemetry::proto::collector::trace::v1::trace_service_server::TraceService;
use proto::opentelemetry::proto::common::v1::{AnyValue, KeyValue, any_value};
use proto::opentelemetry::proto::trace::v1 as trace;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

pub struct Traces(pub Arc<dyn Service>);

#[tonic::async_trait]
impl TraceService for Traces {
    async fn export(&self, request: Request<pb::ExportTraceServiceRequest>) -> Result<Response<pb::ExportTraceServiceResponse>, Status> {
        let spans = self.0.spans();
        for resource in request.into_inner().resource_spans {
            let of = resource.resource.map(|r| attributes(r.attributes)).unwrap_or_default();
            for scope in resource.scope_spans {
                let name = scope.scope.map(|s| s.name).unwrap_or_default();
                for span in scope.spans.into_iter().filter_map(|span| read(span, &of, &name)) {
                    spans.add(span.trace, span.stub());
                }
            }
        }
        Ok(Response::new(pb::ExportTraceServiceResponse::default()))
    }
}

/// `None` for a span whose ids are not ids.
fn read(span: trace::Span, resource: &[Value], scope: &str) -> Option<Span> {
    let at = |nanos: u64| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
    let status = span.status.unwrap_or_default();
    Some(Span {
        trace: TraceId(u128::from_be_bytes(span.trace_id.as_slice().try_into().ok()?)),
        id: u64::from_be_bytes(span.span_id.as_slice().try_into().ok()?),
        parent: span.parent_span_id.as_slice().try_into().ok().map(u64::from_be_bytes).filter(|id| *id != 0),
        kind: span.kind,
        name: span.name,
        start: at(span.start_time_unix_nano),
        end: at(span.end_time_unix_nano),
        attributes: attributes(span.attributes),
        resource: resource.to_vec(),
        error: (status.code == trace::status::StatusCode::Error as i32).then_some(status.message),
        scope: scope.to_owned(),
    })
}

/// As the Go SDK prints attributes; those of kinds that it has none for are left out.
fn attributes(all: Vec<KeyValue>) -> Vec<Value> {
    all.into_iter().filter_map(|KeyValue { key, value }| Some(json!({ "Key": key, "Value": attribute(value?)? }))).collect()
}

fn attribute(value: AnyValue) -> Option<Value> {
    use any_value::Value as V;
    Some(match value.value? {
        V::StringValue(text) => json!({ "Type": "STRING", "Value": text }),
        V::BoolValue(is) => json!({ "Type": "BOOL", "Value": is }),
        V::IntValue(number) => json!({ "Type": "INT64", "Value": number }),
        V::DoubleValue(number) => json!({ "Type": "FLOAT64", "Value": number }),
        V::ArrayValue(list) => {
            let values: Vec<Value> = list.values.into_iter().filter_map(attribute).collect();
            let kind = values.first().and_then(|v| v["Type"].as_str()).unwrap_or("STRING").to_owned() + "SLICE";
            let plain: Vec<&Value> = values.iter().map(|v| &v["Value"]).collect();
            json!({ "Type": kind, "Value": plain })
        }
        V::KvlistValue(_) | V::BytesValue(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_and_one_without_ids_is_not() {
        let attribute = KeyValue { key: "k".into(), value: Some(AnyValue { value: Some(any_value::Value::IntValue(3)) }) };
        let span = trace::Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "call".into(),
            kind: 3,
            start_time_unix_nano: 1_500_000_000,
            attributes: vec![attribute],
            status: Some(trace::Status { message: "bad".into(), code: 2 }),
            ..trace::Span::default()
        };
        let stub = read(span.clone(), &[], "lib").unwrap().stub();
        assert_eq!(stub["SpanContext"]["SpanID"], "0202020202020202");
        assert_eq!(stub["StartTime"], "1970-01-01T00:00:01.5Z");
        assert_eq!(stub["Attributes"], json!([{ "Key": "k", "Value": { "Type": "INT64", "Value": 3 } }]));
        assert_eq!((&stub["Status"]["Code"], &stub["Parent"]["SpanID"]), (&json!("Error"), &json!("0000000000000000")));
        assert!(read(trace::Span { span_id: Default::default(), ..span }, &[], "").is_none());
    }
}
