package server

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"penstock.dev/penstock/internal/enginesim"
	"penstock.dev/penstock/internal/stat"
)

// wireTransfer is what a request says of its other leg.
type wireTransfer struct {
	KV        *kvParams `json:"kv_transfer_params"`
	Threshold *float64  `json:"cache_hit_threshold"`

	Encoded map[string]encodedAt `json:"ec_transfer_params"`

	roomParams
}

// roomParams are SGLang's.
type roomParams struct {
	Host string `json:"bootstrap_host"`
	Port *int   `json:"bootstrap_port"`
	Room *int64 `json:"bootstrap_room"`
}

// kvParams are vLLM's kv_transfer_params.
type kvParams struct {
	DoRemotePrefill bool            `json:"do_remote_prefill"`
	DoRemoteDecode  bool            `json:"do_remote_decode"`
	BlockIDs        json.RawMessage `json:"remote_block_ids"`
	EngineID        string          `json:"remote_engine_id"`
	RequestID       string          `json:"remote_request_id"`
	Host            string          `json:"remote_host"`
	Port            int             `json:"remote_port"`
	TP              int             `json:"tp_size"`
	DCP             int             `json:"dcp_size"`
	PP              int             `json:"pp_size"`
	Tokens          int             `json:"remote_num_tokens"`
	Expiry          float64         `json:"remote_blocks_expiry_time"` // seconds of the source's own clock
	Mode            string          `json:"transfer_mode,omitempty"`

	TransferID string `json:"transfer_id,omitempty"`
	Bootstrap  string `json:"remote_bootstrap_addr,omitempty"`

	// What the connector offload is told, by the part that the other engine has.
	Decoder   *peer `json:"remote_decoder,omitempty"`
	Prefiller *peer `json:"remote_prefiller,omitempty"`
	Source    *peer `json:"remote_kv_source,omitempty"`
}

// peer is another engine with the connector offload.
type peer struct {
	ID   string `json:"kv_request_id"`
	Host string `json:"remote_host,omitempty"`
	Port int    `json:"remote_port,omitempty"`
}

// complete reports whether p says where to pull from. vLLM computes the prompt
// itself if it does not.
func (p *kvParams) complete() bool {
	return p.EngineID != "" && p.RequestID != "" && p.Host != "" && p.Port > 0
}

// answer is what the other leg needs to know of t.
func (p *pd) answer(t *ticket) []byte {
	ids := make([]string, len(t.blocks))
	for i, b := range t.blocks {
		ids[i] = strconv.Itoa(b)
		if p.options.BlockIDs == BlockStrings {
			ids[i] = `"` + blockName(b) + `"`
		}
	}
	mode := "pull"
	if p.options.Connector == NIXLPush {
		mode = "push"
	}
	return appendJSON(nil, kvParams{
		DoRemotePrefill: true, BlockIDs: json.RawMessage("[[" + strings.Join(ids, ",") + "]]"),
		EngineID: p.engineID, RequestID: t.name, Host: p.host, Port: p.port,
		TP: p.tp, DCP: 1, PP: 1, Tokens: t.tokens, Expiry: p.clock(t.until), Mode: mode,
	})
}

func blockName(b int) string { return "b" + strconv.Itoa(b) }

// blockNumbers reads remote_block_ids: one list for each group of layers, of which
// there is one here, or the list itself as older releases have it; numbers or
// names.
func blockNumbers(raw json.RawMessage) ([]int, error) {
	if !given(raw) {
		return nil, nil
	}
	var groups [][]any
	if json.Unmarshal(raw, &groups) != nil {
		var list []any
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, errors.New("remote_block_ids: must be a list of lists")
		}
		groups = [][]any{list}
	}
	if len(groups) > 1 {
		return nil, fmt.Errorf("remote_block_ids: %d groups, and there is 1 here", len(groups))
	}
	var ids []int
	for _, v := range slices.Concat(groups...) {
		switch v := v.(type) {
		case float64:
			ids = append(ids, int(v))
		case string:
			n, err := strconv.Atoi(strings.TrimPrefix(v, "b"))
			if err != nil {
				return nil, fmt.Errorf("remote_block_ids: %q is no block", v)
			}
			ids = append(ids, n)
		default:
			return nil, fmt.Errorf("remote_block_ids: %v is no block", v)
		}
	}
	return ids, nil
}

// join finds a request's part in a transfer, if it has one.
func (s *Server) join(q *wireRequest, choices []choice) error {
	m := &move{threshold: q.Threshold}
	if t := q.Threshold; t != nil && (*t < 0 || *t > 1) {
		return badRequest("cache_hit_threshold", "cache_hit_threshold must be between 0 and 1, got %v", *t)
	}
	found := m.threshold != nil
	if p := s.pd; p != nil {
		joined, err := p.join(m, q, choices)
		if err != nil {
			return err
		}
		found = found || joined
	}
	if !found {
		return nil
	}
	for i := range choices {
		if i > 0 && !choices[i].repeat {
			return badRequest("prompt", "kv_transfer_params, bootstrap_room and cache_hit_threshold are for one prompt")
		}
		choices[i].move = m
	}
	return nil
}

// join fills in m and reports whether there is a transfer.
func (p *pd) join(m *move, q *wireRequest, choices []choice) (bool, error) {
	k := q.KV
	switch c := p.options.Connector; {
	case c == Rooms:
		return p.joinRoom(m, q, choices)
	case c == Shared:
		return true, nil
	case k == nil:
		return false, nil
	case k.DoRemoteDecode && k.DoRemotePrefill:
		return false, badRequest("kv_transfer_params", "kv_transfer_params: do_remote_prefill and do_remote_decode exclude each other")
	case c == Offload:
		return p.joinOffload(m, k)
	case c == Mooncake && k.TransferID == "":
		return false, nil
	}
	m.from = *k
	if p.options.Connector != NIXL {
		m.name = k.TransferID
	}
	m.keep = k.DoRemoteDecode
	switch {
	case m.keep:
		return true, nil
	case p.options.Connector == Mooncake:
		return k.DoRemotePrefill && k.Bootstrap != "", nil
	case m.name != "":
		return k.DoRemotePrefill && k.Host != "" && k.Port > 0, nil
	}
	return k.DoRemotePrefill && k.complete(), nil
}

// joinRoom finds the part of a request to SGLang, both legs of which are alike.
// The prompt's leg makes one token.
func (p *pd) joinRoom(m *move, q *wireRequest, choices []choice) (bool, error) {
	if q.Room == nil {
		return false, badRequest("bootstrap_room", "Disaggregated request received without bootstrap room id.")
	}
	if len(choices) > 1 {
		return false, badRequest("n", "a bootstrap_room is for one sequence")
	}
	if p.options.Role != RolePrefill && (q.Host == "" || q.Port == nil) {
		return false, badRequest("bootstrap_host", "bootstrap_host and bootstrap_port must be given")
	}
	m.room, m.name = &q.roomParams, strconv.FormatInt(*q.Room, 10)
	if p.options.Role == RolePrefill {
		m.keep, m.waits = true, true
		a := &choices[0].answer
		a.ends = a.ends[:1]
		a.text, a.finish, a.stop = a.text[:a.ends[0]], enginesim.FinishLength, ""
		if len(a.tokens) > 0 {
			a.tokens = a.tokens[:1]
		}
	}
	return true, nil
}

// hash is what vLLM compares before a transfer; it says that a pair does not fit,
// and the facts say why.
func hashOf(facts []string) string {
	h := sha256.Sum256([]byte(strings.Join(facts, "\n")))
	return hex.EncodeToString(h[:])
}

// differences says in which facts two engines differ.
func differences(here, there []string) string {
	var list []string
	for i := range max(len(here), len(there)) {
		var a, b string
		if i < len(here) {
			a = here[i]
		}
		if i < len(there) {
			b = there[i]
		}
		if a != b {
			list = append(list, fmt.Sprintf("%s here, %s there", cmp.Or(a, "nothing"), cmp.Or(b, "nothing")))
		}
	}
	return strings.Join(list, "; ")
}

// sideRequest is a line of JSON to a source. Reads are answered with a line and
// the blocks.
type sideRequest struct {
	Op       string   `json:"op"`                  // hello, read, free, heartbeat, prefix
	EngineID string   `json:"engine_id,omitempty"` // hello: who is expected; empty if not known
	Peer     string   `json:"peer,omitempty"`      // hello: who asks
	Name     string   `json:"name,omitempty"`      // of the transfer
	Awaited  bool     `json:"awaited,omitempty"`   // it may not have begun: wait for it
	Blocks   []int    `json:"blocks,omitempty"`    // those wanted; none if only their source knows them
	Skip     int      `json:"skip,omitempty"`      // blocks at the beginning that are not wanted
	Tokens   int      `json:"tokens,omitempty"`    // that are missing
	Keys     []uint64 `json:"keys,omitempty"`      // prefix: of the prompt's blocks
}

// sideReply is a line of JSON from a source.
type sideReply struct {
	Error    string   `json:"error,omitempty"`
	EngineID string   `json:"engine_id,omitempty"`
	Hash     string   `json:"compatibility_hash,omitempty"`
	Facts    []string `json:"facts,omitempty"`
	TP       int      `json:"tp_size,omitempty"`
	Clock    float64  `json:"clock,omitempty"` // of the source, in seconds
	Blocks   int      `json:"blocks,omitempty"`
	Tokens   int      `json:"tokens,omitempty"`
	Bytes    float64  `json:"bytes,omitempty"`
	WaitedMS float64  `json:"waited_ms,omitempty"`
}

// sideConn is a connection of the side channel.
type sideConn struct {
	net.Conn
	r    *bufio.Reader
	stop func() bool // its watch; nil for none
}

func newSideConn(nc net.Conn) *sideConn { return &sideConn{Conn: nc, r: bufio.NewReader(nc)} }

// Close implements net.Conn.
func (c *sideConn) Close() error {
	if c.stop != nil {
		c.stop()
	}
	return c.Conn.Close()
}

// maxLine bounds a line of the side channel.
const maxLine = 4 << 20

func (c *sideConn) send(v any) error {
	_, err := c.Write(append(appendJSON(nil, v), '\n'))
	return err
}

func (c *sideConn) receive(v any) error {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return json.Unmarshal(line, v)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
		if len(line) > maxLine {
			return errors.New("the line has no end")
		}
	}
}

// blockBytes is what stands for a block on the way: enough to tell which one it
// is, and of which process.
const blockBytes = 64

const blockMagic = 0x314b4c42_564b4e50 // "PNKVBLK1", the other way round

// appendBlock appends what stands for a block.
func appendBlock(b []byte, key, incarnation uint64, index int) []byte {
	from := len(b)
	for _, v := range []uint64{blockMagic, key, incarnation, uint64(index)} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	sum := uint64(0)
	for i := from; i < len(b); i += 8 {
		sum = stat.Mix64(sum ^ binary.LittleEndian.Uint64(b[i:]))
	}
	for range 4 {
		b = binary.LittleEndian.AppendUint64(b, sum)
		sum = stat.Mix64(sum)
	}
	return b
}

// readBlocks reads the blocks of the keys, the first of which is at index first,
// and says which one is not what it should be.
func readBlocks(r io.Reader, keys []uint64, incarnation uint64, first int) error {
	var got [blockBytes]byte
	var want []byte
	for i, key := range keys {
		if _, err := io.ReadFull(r, got[:]); err != nil {
			return &loadError{reason: fmt.Sprintf("block %d of %d: %v", first+i, first+len(keys), err)}
		}
		want = appendBlock(want[:0], key, incarnation, first+i)
		for at, what := range []string{"has no magic", "is of other tokens", "is of another process", "is another one of the prompt", "is damaged"} {
			if at *= 8; string(got[at:at+8]) != string(want[at:at+8]) {
				return &loadError{wrong: true, reason: fmt.Sprintf("block %d of %d %s: %x, not %x", first+i, first+len(keys), what, got[at:at+8], want[at:at+8])}
			}
		}
		if string(got[:]) != string(want) {
			return &loadError{wrong: true, reason: fmt.Sprintf("block %d of %d is damaged", first+i, first+len(keys))}
		}
	}
	return nil
}

// loadError is why KV could not be fetched.
type loadError struct {
	reason string
	wrong  bool // it was, and is not what it should be
}

// Error gives the reason.
func (e *loadError) Error() string { return e.reason }
