package api

import (
	"errors"
	"fmt"
	"math"
	"time"

	"penstock.dev/penstock/internal/fleet"
)

// Problem is one error as a client sees it; its Style says how it is written.
type Problem struct {
	Status     int // HTTP status
	Type, Code string
	Param      string // the field at fault; empty for none
	Message    string
	RetryAfter time.Duration // 0 for none
}

// RetryAfterSeconds returns the value of the Retry-After header: whole seconds,
// rounded up, at least 1; 0 when there is none.
func (p Problem) RetryAfterSeconds() int {
	if p.RetryAfter <= 0 {
		return 0
	}
	return max(int(math.Ceil(p.RetryAfter.Seconds())), 1)
}

// brief returns s, cut to what an error message should echo.
func brief(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// The error types of the OpenAI API that Penstock uses.
const (
	typeInvalid  = "invalid_request_error"
	typeServer   = "server_error"
	typeOverload = "overloaded_error"
	typeRate     = "rate_limit_error"
)

// BadBody turns an error of Scan into its Problem.
func BadBody(err error) Problem {
	p := Problem{Status: 400, Type: typeInvalid, Code: "invalid_body", Message: "The request body is " + err.Error() + "."}
	if f, ok := errors.AsType[*FieldError](err); ok {
		p.Code, p.Param, p.Message = "invalid_field", f.Field, f.Error()+"."
	}
	if f, ok := errors.AsType[*InexactError](err); ok {
		p.Status, p.Code, p.Param, p.Message = 501, "not_supported", f.Field, f.Error()+"."
	}
	return p
}

// BadHeader is the answer to a header whose value makes no sense.
func BadHeader(name, value, wants string) Problem {
	return Problem{
		Status: 400, Type: typeInvalid, Code: "invalid_header", Param: name,
		Message: fmt.Sprintf("The header %s %s; it is %q.", name, wants, brief(value)),
	}
}

// NotSpoken is the answer to a request in an API that the model's engines do not
// speak.
func NotSpoken(path, model string) Problem {
	return Problem{
		Status: 501, Type: typeInvalid, Code: "not_supported",
		Message: fmt.Sprintf("The engines of the model %q do not speak %s.", brief(model), brief(path)),
	}
}

// NoRealtime is the answer to a request for a realtime session.
func NoRealtime() Problem {
	return Problem{Status: 501, Type: typeInvalid, Code: "not_supported", Message: "Realtime sessions are not supported by this gateway."}
}

// UnknownResponse is the answer to a response id that no endpoint is known to
// hold.
func UnknownResponse(id, param string) Problem {
	return Problem{
		Status: 404, Type: typeInvalid, Code: "response_not_found", Param: param,
		Message: fmt.Sprintf("The response %q is not known here: it was never stored, or its endpoint is gone, or it is too old.", brief(id)),
	}
}

// UnknownModel is the answer to a model that no pool serves.
func UnknownModel(model string) Problem {
	return Problem{
		Status: 404, Type: typeInvalid, Code: "model_not_found", Param: "model",
		Message: fmt.Sprintf("The model %q does not exist here. GET /v1/models lists those that do.", brief(model)),
	}
}

// TooLarge is the answer to a body beyond the limit, in bytes.
func TooLarge(limit int64) Problem {
	return Problem{
		Status: 413, Type: typeInvalid, Code: "body_too_large",
		Message: fmt.Sprintf("The request body is larger than %d bytes, the limit of this gateway (--max-body).", limit),
	}
}

// SlowBody is the answer to a body that did not arrive in time.
func SlowBody(limit time.Duration) Problem {
	return Problem{
		Status: 408, Type: typeInvalid, Code: "body_timeout",
		Message: fmt.Sprintf("The request body did not arrive within %v.", limit),
	}
}

// NotFound is the answer to a path or method that the gateway does not serve.
func NotFound(method, path string) Problem {
	return Problem{
		Status: 404, Type: typeInvalid, Code: "unknown_url",
		Message: fmt.Sprintf("Unknown request URL: %s %s.", brief(method), brief(path)),
	}
}

// WrongMethod is the answer to a known path with another method.
func WrongMethod(method, path, allow string) Problem {
	return Problem{
		Status: 405, Type: typeInvalid, Code: "method_not_allowed",
		Message: fmt.Sprintf("%s is not allowed on %s; use %s.", brief(method), brief(path), allow),
	}
}

// Refused is the answer to a request that the pool refused.
func Refused(r fleet.Refusal, retryAfter time.Duration) Problem {
	p := Problem{Type: typeOverload, Code: r.String(), RetryAfter: retryAfter}
	switch r {
	case fleet.RefuseQueueFull:
		p.Status, p.Type = 429, typeRate
		p.Message = "All endpoints are busy and the queue is full."
	case fleet.RefuseExpired:
		p.Status, p.Message = 503, "The request waited in the queue for as long as it may."
	case fleet.RefuseNoEndpoint:
		p.Status, p.Message = 503, "No endpoint of this model is fit to serve at the moment."
	case fleet.RefuseOverload:
		p.Status, p.Message = 503, "Every endpoint that was tried is overloaded."
	case fleet.RefuseDraining:
		p.Status, p.Message = 503, "This gateway is shutting down."
		p.RetryAfter = max(p.RetryAfter, time.Second)
	case fleet.RefuseCrowded:
		p.Status, p.Message = 503, "This gateway serves as many requests at once as it may (limits.maxRequests)."
		p.RetryAfter = max(p.RetryAfter, time.Second)
	case fleet.RefuseTimeout:
		p.Status, p.Type, p.Message = 504, typeServer, "The engine did not answer in time."
	default:
		p.Status, p.Type, p.Message = 502, typeServer, "The engine failed before it answered."
	}
	return p
}

// StreamBroke is the last event of a stream whose engine failed.
func StreamBroke(why fleet.Failure) Problem {
	return Problem{
		Status: 502, Type: typeServer, Code: "stream_broken",
		Message: "The engine failed in the middle of the answer (" + why.String() + "); what was sent so far is incomplete.",
	}
}

// Internal is the answer when the gateway itself is at fault.
func Internal() Problem {
	return Problem{Status: 500, Type: typeServer, Code: "internal", Message: "The gateway failed; its log says why, under the request id."}
}
