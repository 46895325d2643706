package rotation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/keyturn/keyturn/key"
)

// sameBytes wants the two ways to encode a state to agree.
func sameBytes(t *testing.T, s *State) {
	t.Helper()
	want, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := MarshalState(s)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	sameState(t, got)
}

// sameState wants the two ways to decode a state to agree.
func sameState(t *testing.T, data []byte) {
	t.Helper()
	var got, want State
	gotErr, wantErr := UnmarshalState(data, &got), json.Unmarshal(data, &want)
	if (gotErr == nil) != (wantErr == nil) || gotErr == nil && !reflect.DeepEqual(got, want) {
		t.Errorf("%s\n got %+v, %v\nwant %+v, %v", data, got, gotErr, want, wantErr)
	}
}

// FuzzUnmarshalState: whatever is decoded is what encoding/json makes of it.
func FuzzUnmarshalState(f *testing.F) {
	for _, s := range []string{
		`{"seq":1,"next":2,"presenters":[{"id":"a","stage":-1,"told":3,"epoch":4,"heard":5,"acked":true,"failed":true,"detail":"x","maybe":[1,2],"also":[3],"silent":true}],"floor":7}`,
		`{"seq":1,"next":2,"presenters":[{"id":"a","stage":0},{"id":"b","stage":1}]}`,
		`{"seq":1,"next":2,"presenters":[{"id":"a","stage":0}],}`,
		`{"seq":1,"next":2,"presenters":[{"id":"a","stage":0}]{"floor":1}`,
		`{"seq":1,"next":2,"presenters":[{"id":"a","stage":0}],"Presenters":[{"stage":2}],"SEQ":9}`,
		`{"seq":1,"next":2,"presenters":[{"id":"\u0061","stage":007}],"floor":-1}`,
		`{,"presenters":[]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { sameState(t, data) })
}

// TestUnmarshalStateIsQuick: what is stored of a large fleet is read the quick way.
func TestUnmarshalStateIsQuick(t *testing.T) {
	data, err := MarshalState(fleetOf(3))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := readState(data); !ok {
		t.Errorf("%s is left to encoding/json", data)
	}
}

// FuzzMarshalState: every state is encoded as encoding/json would.
func FuzzMarshalState(f *testing.F) {
	f.Add("web1", "", "", int64(0), uint64(1), uint64(7), uint8(0))
	f.Add("a/b:c", "eu", "exit 1: \"no\" <&>\n\u2028\xff", int64(-3), uint64(1<<63), uint64(1<<64-1), uint8(255))
	f.Fuzz(func(t *testing.T, id, region, detail string, stage int64, told, epoch uint64, bits uint8) {
		s := State{Seq: epoch, Next: key.Version(told), Floor: uint64(bits & 1)}
		p := Presenter{
			ID: id, Region: region, Stage: int(stage), Told: key.Version(told), Epoch: epoch, Heard: epoch / 2, Detail: detail,
			Acked: bits&2 != 0, Failed: bits&4 != 0, Silent: bits&8 != 0,
		}
		for i := range bits >> 6 {
			p.Maybe, p.Also = append(p.Maybe, key.Version(told)+key.Version(i)), append(p.Also, key.Version(i))
		}
		for range bits >> 4 & 3 {
			s.Presenters = append(s.Presenters, p)
		}
		if bits&32 != 0 {
			s.Now = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
			s.Rotations = []Rotation{{Kind: Manual, Phase: Presenting, Reason: detail}}
		}
		sameBytes(t, &s)
	})
}

// TestMarshalStateKnowsAllFields: each field of a state and of a presenter, set
// alone, is encoded as encoding/json would; so is one that is added later.
func TestMarshalStateKnowsAllFields(t *testing.T) {
	set := func(v reflect.Value) bool {
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(true)
		case reflect.String:
			v.SetString("x")
		case reflect.Int:
			v.SetInt(3)
		case reflect.Uint32, reflect.Uint64:
			v.SetUint(4)
		case reflect.Slice:
			if v.Type() == reflect.TypeFor[[]key.Version]() {
				v.Set(reflect.ValueOf([]key.Version{1, 2}))
				return true
			}
			return false
		default:
			return false
		}
		return true
	}
	for i := range reflect.TypeFor[Presenter]().NumField() {
		var p Presenter
		if !set(reflect.ValueOf(&p).Elem().Field(i)) {
			t.Errorf("this test cannot set %s", reflect.TypeFor[Presenter]().Field(i).Name)
		}
		sameBytes(t, &State{Presenters: []Presenter{{ID: "a"}, p}})
	}
	full := State{
		Versions: []Version{{Number: 1, State: key.Active}}, Verifiers: []Verifier{{ID: "db"}}, Presenters: []Presenter{{ID: "a"}},
		Rotations: []Rotation{{Kind: Manual, Phase: Presenting}}, Ended: []Rotation{{Kind: Manual, Phase: Done}}, Now: time.Unix(1, 0).UTC(),
	}
	sameBytes(t, &full)
	for i := range reflect.TypeFor[State]().NumField() {
		var s State
		if field := reflect.ValueOf(&s).Elem().Field(i); !set(field) {
			field.Set(reflect.ValueOf(full).Field(i))
		}
		sameBytes(t, &s)
	}
}

func fleetOf(presenters int) *State {
	s := &State{Versions: []Version{{Number: 7, State: key.Active}}, Verifiers: []Verifier{{ID: "db"}}, Rotations: []Rotation{{Kind: Manual, Phase: Presenting}}}
	for i := range presenters {
		s.Presenters = append(s.Presenters, Presenter{ID: fmt.Sprintf("agent-%04d", i), Told: 7, Epoch: uint64(70_000 + i), Acked: true, Maybe: []key.Version{7}})
	}
	return s
}

func BenchmarkMarshalState(b *testing.B) {
	s := fleetOf(10_000)
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			_, _ = MarshalState(s)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		for b.Loop() {
			_, _ = json.Marshal(s)
		}
	})
}

func BenchmarkUnmarshalState(b *testing.B) {
	data, err := MarshalState(fleetOf(10_000))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			var s State
			_ = UnmarshalState(data, &s)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		for b.Loop() {
			var s State
			_ = json.Unmarshal(data, &s)
		}
	})
}
