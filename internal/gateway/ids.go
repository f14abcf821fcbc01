package gateway

import (
	"math/rand/v2"
	"net/http"
	"strconv"
)

// maxID is the longest request id taken from a client.
const maxID = 128

// requestID returns the client's request id when it is fit to be logged and
// sent on, or a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id != "" && len(id) <= maxID && isPrintable(id) {
		return id
	}
	const idBits = 1 << 60 // 12 digits in base 36
	return "req-" + strconv.FormatUint(rand.Uint64N(idBits)+idBits, 36)
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}
