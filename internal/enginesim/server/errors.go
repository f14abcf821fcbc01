package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// apiError is an error in the API's own shape.
type apiError struct {
	status  int
	message string
	param   string
}

// Error returns the message the client sees.
func (e *apiError) Error() string { return e.message }

func badRequest(param, format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, fmt.Sprintf(format, args...), param}
}

// kinds are the error types vLLM gives to statuses.
var kinds = map[int]string{
	http.StatusBadRequest:            "BadRequestError",
	http.StatusNotFound:              "NotFoundError",
	http.StatusMethodNotAllowed:      "MethodNotAllowedError",
	http.StatusRequestEntityTooLarge: "BadRequestError",
	http.StatusTooManyRequests:       "RateLimitError",
	http.StatusServiceUnavailable:    "ServiceUnavailableError",
}

func kindOf(status int) string {
	if kind := kinds[status]; kind != "" {
		return kind
	}
	return "InternalServerError"
}

// asAPIError returns err as clients see it; what is not an apiError is the client's fault,
// for the engine itself does not fail.
func asAPIError(err error) *apiError {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	return badRequest("", "%v", err)
}

// writeError answers with err in vLLM's shape.
func writeError(w http.ResponseWriter, err error) {
	e := asAPIError(err)
	var body struct {
		Error struct {
			Message string  `json:"message"`
			Type    string  `json:"type"`
			Param   *string `json:"param"`
			Code    int     `json:"code"`
		} `json:"error"`
	}
	body.Error.Message, body.Error.Code, body.Error.Type = e.message, e.status, kindOf(e.status)
	if e.param != "" {
		body.Error.Param = &e.param
	}
	writeJSON(w, e.status, body)
}

// fail answers r with err, in the shape that its route's clients expect.
// Nobody is there to be told that the engine has stopped, or the client gone.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, errStopped), r.Context().Err() != nil:
		panic(http.ErrAbortHandler)
	case s.options.Engine == SGLang && r.URL.Path == "/generate":
		e := asAPIError(err)
		writeJSON(w, e.status, map[string]any{"error": map[string]string{"message": e.message}})
	case s.options.Engine == SGLang:
		e := asAPIError(err)
		writeJSON(w, e.status, map[string]any{"object": "error", "message": e.message, "type": kindOf(e.status), "param": nil, "code": e.status})
	case strings.HasPrefix(r.URL.Path, "/v1/messages") && !s.options.NoMessages:
		writeAnthropicError(w, asAPIError(err))
	default:
		writeError(w, err)
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		// Only values of this package's own types come here, and they all marshal.
		panic(fmt.Errorf("encoding an answer: %w", err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
}
