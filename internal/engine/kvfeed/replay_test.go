package kvfeed

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestReplayInBothForms(t *testing.T) {
	dealer, router, err := pair(t, "DEALER", "ROUTER")
	if err != nil {
		t.Fatal(err)
	}
	number := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	go func() {
		ask, err := router.Receive()
		if err != nil || len(ask) != 2 || len(ask[0]) != 0 {
			router.Close()
			return
		}
		from := binary.BigEndian.Uint64(ask[1])
		_ = router.Send(nil, number(from), []byte("old"))
		_ = router.Send(nil, []byte("topic"), number(from+1), []byte("new"))
		_ = router.Send(nil, nil, number(1<<64-1), nil)
	}()
	if err := dealer.AskReplay(258); err != nil {
		t.Fatal(err)
	}
	var seqs []uint64
	var said string
	if err := dealer.ReadReplay(func(seq uint64, payload []byte) { seqs, said = append(seqs, seq), said+string(payload) }); err != nil {
		t.Fatal(err)
	}
	if len(seqs) != 2 || seqs[0] != 258 || seqs[1] != 259 || said != "oldnew" {
		t.Fatalf("%v %q", seqs, said)
	}
}

func TestKeepBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tries, used := 0, 0
		err := Keep(ctx, func(context.Context) (*Conn, error) {
			if tries++; tries == 5 {
				left, _ := net.Pipe()
				return newConn(left), nil
			}
			return nil, errors.New("refused")
		}, func(*Conn) error { used++; return nil })
		if !errors.Is(err, context.DeadlineExceeded) || tries < 8 || tries > 25 || used != 1 {
			t.Errorf("%d tries in a minute, %d connections used: %v", tries, used, err)
		}
	})
}
