package engine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/audit"
	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/policy"
	"github.com/keyturn/keyturn/internal/rotation"
	"github.com/keyturn/keyturn/internal/store"
	"github.com/keyturn/keyturn/key"
	"github.com/keyturn/keyturn/secret"
)

// kindLeak has a document for each version that was found where it should not be.
const kindLeak = "leak"

// Limits of one comparison.
const (
	MaxLeakCandidates = 500
	MaxLeakPlace      = 1000
	MaxLeakText       = keeper.MaxFingerprinted
	// maxSameSecret is how many versions with one secret are told.
	maxSameSecret = 20
)

// LeakCandidate is a text that was found, and where.
type LeakCandidate struct {
	Text  secret.Value
	Place string
}

// LeakMatch is a candidate that is a secret of a managed version.
type LeakMatch struct {
	// Candidate is its number, from 0.
	Candidate int
	Key       key.Name
	Version   key.Version
	State     key.State
	// Live: some verifier may accept it, or it can be restored in one step.
	Live  bool
	Owner string
	// Secret is its name within the version.
	Secret string
	// Action is what policy had done; zero when the version is not live.
	Action policy.LeakAction
	// Rotation replaces the version; zero if none does.
	Rotation key.RotationID
	// Known: it was found before.
	Known bool
}

// leakRecord is what became of a version that was found.
type leakRecord struct {
	Key     key.Name    `json:"key"`
	Version key.Version `json:"version"`
	First   time.Time   `json:"first"`
	Last    time.Time   `json:"last"`
	// Place is where it was found first.
	Place    string            `json:"place,omitempty"`
	Count    int               `json:"count"`
	Action   policy.LeakAction `json:"action,omitzero"`
	Rotation key.RotationID    `json:"rotation,omitzero"`
}

// MatchLeaks compares what was found with the secrets of all versions whose material
// is kept and whose key is visible. What the policy of a live version says is done in
// the same transaction, once for each version: a version that is found again begins
// nothing again. It fails with ErrInvalid.
func (e *Engine) MatchLeaks(ctx context.Context, actor audit.Actor, candidates []LeakCandidate, visible func(key.Name) bool) ([]LeakMatch, error) {
	if len(candidates) > MaxLeakCandidates {
		return nil, fmt.Errorf("%w: %d candidates, at most %d are allowed; send several requests", ErrInvalid, len(candidates), MaxLeakCandidates)
	}
	prints, err := e.fingerprinter(ctx)
	if err != nil {
		return nil, err
	}
	forms := make([][]keeper.Fingerprint, len(candidates))
	for i, c := range candidates {
		if c.Text.Len() > keeper.MaxFingerprinted || len(c.Place) > MaxLeakPlace {
			return nil, fmt.Errorf("%w: candidate %d has %d bytes found at a place of %d; at most %d and %d are allowed", ErrInvalid, i, c.Text.Len(), len(c.Place), keeper.MaxFingerprinted, MaxLeakPlace)
		}
		forms[i] = prints.Forms(c.Text)
	}
	// Nearly nothing matches: what does is found without keeping writers waiting.
	var matching []int
	err = e.store.View(ctx, func(tx store.Tx) error {
		matching = nil
		for i := range candidates {
			found, err := recognise(ctx, tx, forms[i])
			if err != nil {
				return err
			}
			if len(found) > 0 {
				matching = append(matching, i)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ids := map[fingerprinted]key.RotationID{}
	var matches []LeakMatch
	err = e.update(ctx, actor, func(c *change) error {
		matches = nil
		for _, i := range matching {
			found, err := recognise(ctx, c.tx, forms[i])
			if err != nil {
				return err
			}
			for _, f := range found {
				if !visible(f.Key) {
					continue
				}
				if ids[f].IsZero() {
					if ids[f], err = e.newID(); err != nil {
						return err
					}
				}
				match, err := c.leaked(f, candidates[i].Place, ids[f])
				if err != nil {
					return err
				}
				match.Candidate = i
				matches = append(matches, match)
			}
		}
		c.audit(audit.Entry{Action: "leaks.compared", Detail: map[string]string{"candidates": strconv.Itoa(len(candidates)), "matches": strconv.Itoa(len(matches))}})
		return nil
	})
	if observer, ok := e.config.Observer.(LeakObserver); ok && err == nil && len(matches) > 0 {
		observer.LeakFound()
	}
	return matches, err
}

// LeakObserver is an Observer that wants to know when to ask for OpenLeaks. Its
// method must not block.
type LeakObserver interface{ LeakFound() }

// recognise returns the secrets that have one of the fingerprints.
func recognise(ctx context.Context, tx store.Tx, forms []keeper.Fingerprint) ([]fingerprinted, error) {
	var found []fingerprinted
	for _, sum := range forms {
		docs, err := tx.Index.List(ctx, kindFingerprint, hex.EncodeToString(sum[:])+" ", "", maxSameSecret)
		if err != nil {
			return nil, err
		}
		for i := range docs {
			var f fingerprinted
			if err := decodeInto(docs[i].Body, &f); err != nil {
				return nil, err
			}
			if !slices.Contains(found, f) {
				found = append(found, f)
			}
		}
	}
	return found, nil
}

// leaked notes that a version was found, and does what its policy says.
func (c *change) leaked(f fingerprinted, place string, id key.RotationID) (LeakMatch, error) {
	match := LeakMatch{Key: f.Key, Version: f.Version, Secret: f.Secret}
	record, doc, err := readLeak(c.ctx, c.tx, f.Key, f.Version)
	if err != nil {
		return match, err
	}
	match.Known = record.Count > 0
	wanted, strategy, err := c.leakRule(f.Key, &match)
	if err != nil {
		return match, err
	}
	if !match.Known {
		record.Key, record.Version, record.First, record.Place = f.Key, f.Version, c.now, place
	}
	record.Last = c.now
	record.Count++
	reason := fmt.Sprintf("%s of %s was found at %s", f.Secret, f.Version, orUnknown(place))
	more := match.Live && match.State != key.Compromised && record.Action < wanted
	if !match.Known || more {
		c.audit(audit.Entry{
			Action: "leak.found", Key: f.Key, Version: f.Version, Target: place, Reason: reason,
			Detail: map[string]string{"state": match.State.String(), "policy": wanted.String()},
		})
	}
	if more {
		if err := c.actOnLeak(&record, wanted, strategy, reason, id); err != nil {
			return match, err
		}
	}
	match.Action, match.Rotation = record.Action, record.Rotation
	body, err := encode(record)
	if err != nil {
		return match, err
	}
	doc.Body = body
	_, err = c.tx.Docs.Put(c.ctx, doc)
	return match, err
}

// leakRule says what the policy of a key wants, and completes the match.
func (c *change) leakRule(name key.Name, match *LeakMatch) (policy.LeakAction, rotation.Strategy, error) {
	state, _, err := c.state(name)
	if err != nil {
		return 0, 0, err
	}
	match.Live = slices.Contains(state.Live(), match.Version)
	for i := range state.Versions {
		if state.Versions[i].Number == match.Version {
			match.State = state.Versions[i].State
		}
	}
	_, k, _, err := c.e.readKey(c.ctx, c.tx, name)
	if errors.Is(err, ErrNotFound) {
		match.Live = false // the key was deleted
		return policy.LeakPage, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	match.Owner = k.Metadata.Owner
	compiled, err := c.e.policyOf(c.ctx, c.tx, &k)
	if err != nil {
		return 0, 0, err
	}
	leaks := compiled.Spec().Leaks
	var strategy rotation.Strategy
	switch leaks.Strategy {
	case policy.ReplaceFirst:
		strategy = rotation.ReplaceFirst
	case policy.ContainFirst:
		strategy = rotation.ContainFirst
	}
	return leaks.OnMatch, strategy, nil
}

// actOnLeak begins what policy wants. What cannot begin now is paged for, and tried
// again when the version is found again.
func (c *change) actOnLeak(record *leakRecord, wanted policy.LeakAction, strategy rotation.Strategy, reason string, id key.RotationID) error {
	asked := c.actor
	c.actor = Server() // whoever found it has not asked for a rotation, and may approve it
	defer func() { c.actor = asked }()
	var err error
	switch wanted {
	case policy.LeakPage:
		record.Action = policy.LeakPage
		return nil
	case policy.LeakApproval:
		err = c.beginApproved(record.Key, id, rotation.Manual, reason, 1)
	case policy.LeakEmergency:
		err = c.declare(RotateRequest{Key: record.Key, Reason: reason, Emergency: true, Strategy: strategy, Compromised: []key.Version{record.Version}}, id)
	}
	if err == nil {
		record.Action, record.Rotation = wanted, id
		return nil
	}
	for _, passing := range []error{rotation.ErrBusy, rotation.ErrPhase, rotation.ErrRestored, rotation.ErrCompromised, rotation.ErrInvalid, ErrState} {
		if errors.Is(err, passing) {
			record.Action = max(record.Action, policy.LeakPage)
			c.audit(audit.Entry{Action: "leak.unanswered", Key: record.Key, Version: record.Version, Outcome: audit.OutcomeFailed, Reason: err.Error()})
			return nil
		}
	}
	return err
}

func orUnknown(place string) string {
	if place == "" {
		return "an unknown place"
	}
	return place
}

func readLeak(ctx context.Context, tx store.Tx, name key.Name, v key.Version) (record leakRecord, doc store.Doc, err error) {
	doc, err = tx.Docs.Get(ctx, kindLeak, versionName(name, v))
	if errors.Is(err, store.ErrNotFound) {
		return record, store.Doc{Kind: kindLeak, Name: versionName(name, v)}, nil
	}
	if err == nil {
		err = decodeInto(doc.Body, &record)
	}
	return record, doc, err
}

// deleteLeak forgets that a version was found whose material is destroyed: it is not
// recognised any more. The audit log keeps it.
func deleteLeak(ctx context.Context, tx store.Tx, name key.Name, v key.Version) error {
	doc, err := store.Revision(ctx, tx.Docs, kindLeak, versionName(name, v))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return tx.Docs.Delete(ctx, kindLeak, doc.Name, doc.Rev)
}

// keyOfVersion is the key in the name of a version's document.
func keyOfVersion(docName string) (key.Name, bool) {
	name, _, ok := strings.Cut(docName, "@")
	return key.Name(name), ok
}

// OpenLeak is a version that was found where it should not be and may still be
// accepted somewhere.
type OpenLeak struct {
	Key     key.Name
	Version key.Version
	// First and Last are when it was found, Count how often, Place where first.
	First  time.Time
	Last   time.Time
	Place  string
	Count  int
	Action policy.LeakAction
	// Rotation replaces it; zero if none does.
	Rotation key.RotationID
}

// leakPage is how many documents of leaks are read from one snapshot.
const leakPage = 200

// OpenLeaks returns those behind the version named after, by name, at most limit, and
// what to go on after; empty when there are no more. It takes 1 to store.MaxLimit, and
// keeps no more in memory than it returns, however many versions have leaked.
func (e *Engine) OpenLeaks(ctx context.Context, after string, limit int) (open []OpenLeak, next string, err error) {
	for {
		var docs []store.Doc
		before := len(open)
		err := e.store.View(ctx, func(tx store.Tx) error {
			open = open[:before]
			var err error
			if docs, err = tx.Index.List(ctx, kindLeak, "", after, leakPage); err != nil {
				return err
			}
			for i := range docs {
				if len(open) == limit {
					docs = docs[:i]
					return nil
				}
				leak, live, err := e.openLeak(ctx, tx, &docs[i])
				if err != nil {
					return err
				}
				if live {
					open = append(open, leak)
				}
			}
			return nil
		})
		if err != nil {
			return nil, "", err
		}
		if len(docs) > 0 {
			after = docs[len(docs)-1].Name
		}
		switch {
		case len(open) == limit:
			return open, after, nil
		case len(docs) < leakPage:
			return open, "", nil
		}
	}
}

// openLeak reads a leak; live is false when nothing may accept the version any more.
func (e *Engine) openLeak(ctx context.Context, tx store.Tx, doc *store.Doc) (leak OpenLeak, live bool, err error) {
	var r leakRecord
	if err := decodeInto(doc.Body, &r); err != nil {
		return leak, false, err
	}
	state, err := e.readState(ctx, tx, r.Key)
	if err != nil || !slices.Contains(state.Live(), r.Version) {
		return leak, false, err
	}
	return OpenLeak(r), true, nil
}
