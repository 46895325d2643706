package apikeycheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/internal/keytable"
	"github.com/keyturn/keyturn/key"
)

const (
	// maxUses bounds the uses of one report, maxNamed the callers that are kept apart
	// until they are reported.
	maxUses  = 2000
	maxNamed = 20_000
	// maxAddress bounds what is kept of a caller's address, in bytes.
	maxAddress = 128
)

// who is somebody who used a version, or tried to while it was refused.
type who struct {
	key     key.Name
	version key.Version
	address string
	refused bool
}

// uses are those that were not reported yet. The callers of more than maxNamed are
// left out; what they did is counted.
type uses struct {
	mu      sync.Mutex
	pending map[who]uint64
	// addresses is how many of pending have an address.
	addresses int
	named     map[who]uint32
	// sending are those that are being reported.
	sending map[who]uint32
	// old are tables that were replaced and may have uses.
	old map[*keytable.Table]bool
}

// again has a table that was replaced drained once more.
func (u *uses) again(table *keytable.Table) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.old == nil {
		u.old = map[*keytable.Table]bool{}
	}
	u.old[table] = true
}

// name notes who made a use that the table counts, or a try that it does not. What is
// no version is noted as well, so that it takes as long, and reported to nobody.
func (u *uses) name(w who) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.named == nil {
		u.named = map[who]uint32{}
	}
	w.address = w.address[:min(len(w.address), maxAddress)]
	if _, known := u.named[w]; !known && len(u.named) >= maxNamed {
		if !w.refused {
			return // the table counts it
		}
		w.address = ""
	}
	u.named[w]++
}

// wait adds uses to those that wait to be reported. The caller holds the lock.
func (u *uses) wait(w who, n uint64) {
	if n == 0 {
		return
	}
	if u.pending == nil {
		u.pending = map[who]uint64{}
	}
	_, known := u.pending[w]
	if !known && w.address != "" {
		if u.addresses >= maxNamed {
			w.address = ""
		} else {
			u.addresses++
		}
	}
	u.pending[w] += n
}

// drain takes what the table has counted, and those before it.
func (u *uses) drain(table *keytable.Table) {
	u.mu.Lock()
	named, tables := u.named, u.old
	u.named, u.old = nil, nil
	u.mu.Unlock()
	counted := map[who]uint64{}
	take := func(table *keytable.Table) {
		for more := true; more; {
			var list []keytable.Use
			list, more = table.Drain(maxUses)
			for i := range list {
				counted[who{key: list[i].Key, version: list[i].Version}] += uint64(list[i].Count)
			}
		}
	}
	take(table)
	for old := range tables {
		take(old)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for w, n := range named {
		if w.refused {
			if w.version != 0 {
				u.wait(w, uint64(n))
			}
			continue
		}
		all := who{key: w.key, version: w.version}
		of := min(uint64(n), counted[all])
		counted[all] -= of
		u.wait(w, of)
	}
	for w, n := range counted {
		u.wait(w, n)
	}
}

// some takes a part of what waits, and tells whether there is more.
func (u *uses) some() (part map[who]uint32, more bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	part = map[who]uint32{}
	for w, n := range u.pending {
		if len(part) == maxUses {
			break
		}
		part[w] = uint32(min(n, math.MaxUint32))
		if u.pending[w] -= uint64(part[w]); u.pending[w] > 0 {
			continue
		}
		delete(u.pending, w)
		if w.address != "" {
			u.addresses--
		}
	}
	u.sending = part
	return part, len(u.pending) > 0
}

// taken notes that what was being reported is.
func (u *uses) taken() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sending = nil
}

// usesPerRecord bounds the uses of one record of a cache.
const usesPerRecord = 500

// encode returns what waits, as records hold it; not nil.
func (u *uses) encode() (keptUses, error) {
	u.mu.Lock()
	list := make([]reportUse, 0, len(u.pending))
	for w, n := range u.pending {
		for ; n > 0; n -= min(n, math.MaxUint32) {
			list = append(list, reportUse{Key: w.key, Version: w.version, Count: uint32(min(n, math.MaxUint32)), Address: w.address, Refused: w.refused})
		}
	}
	for w, n := range u.sending { // it may come to nothing
		list = append(list, reportUse{Key: w.key, Version: w.version, Count: n, Address: w.address, Refused: w.refused})
	}
	u.mu.Unlock()
	kept := keptUses{}
	for part := range slices.Chunk(list, usesPerRecord) {
		text, err := json.Marshal(part)
		if err != nil {
			return nil, fmt.Errorf("encode uses of API keys: %w", err)
		}
		kept = append(kept, text)
	}
	return kept, nil
}

// restore has uses wait that encode has returned.
func (u *uses) restore(text []byte) error {
	var list []reportUse
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("%w: uses: %w", errDamaged, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range list {
		one := &list[i]
		u.wait(who{key: one.Key, version: one.Version, address: one.Address, refused: one.Refused}, uint64(one.Count))
	}
	return nil
}

// back has a part wait again that could not be reported.
func (u *uses) back(part map[who]uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sending = nil
	for w, n := range part {
		u.wait(w, uint64(n))
	}
}

// report is as the server takes it.
type report struct {
	Rev     uint64      `json:"rev"`
	Leaving bool        `json:"leaving,omitempty"`
	Uses    []reportUse `json:"uses,omitempty"`
}

type reportUse struct {
	Key         key.Name    `json:"key"`
	Version     key.Version `json:"version"`
	Count       uint32      `json:"count"`
	Address     string      `json:"address,omitempty"`
	Application string      `json:"application"`
	Refused     bool        `json:"refused,omitempty"`
}

// report tells the server what is known and who was let in, until ctx ends.
func (c *Checker) report(ctx context.Context) {
	select {
	case <-c.ready:
	case <-ctx.Done():
		return
	}
	ticker := time.NewTicker(c.config.ReportEvery)
	defer ticker.Stop()
	failing := false
	for {
		err := c.send(ctx, false)
		if err != nil && ctx.Err() == nil && !failing {
			c.config.Logger.WarnContext(ctx, "uses of API keys could not be reported; they are kept", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-c.told:
		case <-ticker.C:
		}
	}
}

// send reports everything that there is; what fails waits.
func (c *Checker) send(ctx context.Context, leaving bool) error {
	rev := c.rev.Load()
	c.uses.drain(c.table.Load())
	for {
		part, more := c.uses.some()
		if err := c.sendPart(ctx, &report{Rev: rev, Leaving: leaving && !more}, part); err != nil {
			c.uses.back(part)
			return err
		}
		c.uses.taken()
		if !more {
			if c.saver != nil {
				c.saver.usesTold.Store(true)
			}
			return nil
		}
	}
}

// sendTime bounds one report.
const sendTime = 10 * time.Second

func (c *Checker) sendPart(ctx context.Context, message *report, part map[who]uint32) error {
	for w, n := range maps.All(part) {
		message.Uses = append(message.Uses, reportUse{Key: w.key, Version: w.version, Count: n, Address: w.address, Application: c.config.Name, Refused: w.refused})
	}
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode a report: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	var problems []error
	for turn := range c.addresses {
		r, err := c.request(ctx, http.MethodPost, "/v1/apikeys/report", turn, bytes.NewReader(body))
		if err != nil {
			return err
		}
		began := c.clock.at(c.config.Now(), 0)
		if err = c.do(r); err == nil {
			c.heard(began)
			return nil
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

func (c *Checker) do(r *http.Request) error {
	response, err := c.config.HTTPClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(io.LimitReader(response.Body, 1024))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	return err
}
