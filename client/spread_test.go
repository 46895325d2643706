package client

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// crowded sends one assignment with a spread and notes when it is acknowledged.
type crowded struct {
	flaky
	spread time.Duration
	acked  chan time.Time
}

func (c *crowded) watch(ctx context.Context, _ *keyturnv1.WatchRequest) (stream, error) {
	return &crowdedStream{flakyStream: flakyStream{ctx: ctx, up: c.up}, spread: c.spread}, nil
}

func (c *crowded) ack(context.Context, *keyturnv1.AckRequest) error {
	c.acked <- time.Now()
	return nil
}

type crowdedStream struct {
	flakyStream
	spread time.Duration
}

func (s *crowdedStream) next() (*keyturnv1.WatchResponse, error) {
	answer, err := s.flakyStream.next()
	if s.n == 1 {
		answer.Assignments = []*keyturnv1.Assignment{{Key: "a", Version: 1, Epoch: 1}}
		answer.AckSpread = durationpb.New(s.spread)
	}
	return answer, err
}

// The acknowledgements of a crowd do not come together, and bad news comes at once.
func TestAcknowledgementsAreSpread(t *testing.T) {
	for _, test := range []struct {
		stated, least, most time.Duration
		code                OutcomeCode
	}{
		{stated: 4 * time.Second, least: 2 * time.Second, most: 4 * time.Second, code: Applied},
		{stated: 4 * time.Second, code: Failed},
		{stated: time.Hour, least: ackSpreadMost / 2, most: ackSpreadMost, code: Applied},
		{code: Applied},
	} {
		synctest.Test(t, func(t *testing.T) {
			const parties = 200
			cfg, err := Config{Address: "https://x", Token: StaticToken(secret.NewString("t"))}.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			server := &crowded{flaky: flaky{up: make(chan struct{})}, spread: test.stated, acked: make(chan time.Time, parties)}
			ctx, cancel := context.WithCancel(t.Context())
			var group sync.WaitGroup
			began := time.Now()
			for range parties {
				c := newClient(cfg, server)
				group.Go(func() {
					_ = c.Watch(ctx, []Known{{Key: "a"}}, func(context.Context, []Assignment) []Outcome {
						return []Outcome{{Key: key.Name("a"), Code: test.code}}
					})
				})
			}
			perTenth := map[int]int{}
			for range parties {
				took := (<-server.acked).Sub(began)
				if took < test.least || took > test.most {
					t.Errorf("%v after %v, of %v", test.code, took, test.stated)
				}
				if test.most > 0 {
					perTenth[int(10*(took-test.least)/(test.most-test.least))]++
				}
			}
			for tenth, n := range perTenth {
				if n > parties/3 {
					t.Errorf("%d of %d in the tenth %d", n, parties, tenth)
				}
			}
			cancel()
			group.Wait()
		})
	}
}
