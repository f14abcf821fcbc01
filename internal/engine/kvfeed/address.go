package kvfeed

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
)

// ErrEndpoint says that an endpoint cannot be reached over a network.
var ErrEndpoint = errors.New("not an endpoint for KV events")

// Address turns an endpoint as engines are told it, and a data-parallel rank,
// into what net.Dial and net.Listen take. Ranks publish, and replay, at the
// endpoint's port plus their number. "tcp://*:5557" is every address of this
// host; "ipc:///path" is a Unix socket, which has no ranks but 0.
func Address(endpoint string, rank int) (network, address string, err error) {
	scheme, rest, ok := strings.Cut(endpoint, "://")
	switch {
	case !ok:
		return "", "", fmt.Errorf("%q: no scheme, want tcp://host:port: %w", endpoint, ErrEndpoint)
	case rank < 0:
		return "", "", fmt.Errorf("%q: rank %d: %w", endpoint, rank, ErrEndpoint)
	case scheme == "ipc" && rank > 0:
		return "", "", fmt.Errorf("%q: a Unix socket has no place for rank %d, use tcp: %w", endpoint, rank, ErrEndpoint)
	case scheme == "ipc" && rest != "":
		return "unix", rest, nil
	case scheme == "inproc":
		return "", "", fmt.Errorf("%q: inproc is inside the engine's process, use tcp: %w", endpoint, ErrEndpoint)
	case scheme != "tcp":
		return "", "", fmt.Errorf("%q: scheme %q, want tcp: %w", endpoint, scheme, ErrEndpoint)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return "", "", fmt.Errorf("%q: %w: %w", endpoint, err, ErrEndpoint)
	}
	base, err := strconv.ParseUint(port, 10, 16)
	if err != nil || base == 0 || base+uint64(rank) > math.MaxUint16 {
		return "", "", fmt.Errorf("%q: port %q for rank %d: %w", endpoint, port, rank, ErrEndpoint)
	}
	if host == "*" {
		host = ""
	}
	return "tcp", net.JoinHostPort(host, strconv.FormatUint(base+uint64(rank), 10)), nil
}
