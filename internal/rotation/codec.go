package rotation

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// MarshalBody returns the stable type name of an event's body and its JSON form.
func MarshalBody(body Body) (eventType string, data []byte, err error) {
	data, err = json.Marshal(body)
	if err != nil {
		return "", nil, fmt.Errorf("encode %s event: %w", body.eventType(), err)
	}
	return body.eventType(), data, nil
}

// UnmarshalBody reads what MarshalBody wrote. It refuses unknown types and
// fields with an error that wraps ErrInvalid.
func UnmarshalBody(eventType string, data []byte) (Body, error) {
	decode, ok := decoders()[eventType]
	if !ok {
		return nil, fmt.Errorf("%w: unknown type %q", ErrInvalid, eventType)
	}
	body, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, eventType, err)
	}
	return body, nil
}

func decoders() map[string]func([]byte) (Body, error) {
	return map[string]func([]byte) (Body, error){
		Configured{}.eventType(): decode[Configured],
		Joined{}.eventType():     decode[Joined],
		Arrived{}.eventType():    decode[Arrived],
		Left{}.eventType():       decode[Left],
		Begin{}.eventType():      decode[Begin],
		Declare{}.eventType():    decode[Declare],
		Revert{}.eventType():     decode[Revert],
		Approve{}.eventType():    decode[Approve],
		Pause{}.eventType():      decode[Pause],
		Resume{}.eventType():     decode[Resume],
		Cancel{}.eventType():     decode[Cancel],
		Acked{}.eventType():      decode[Acked],
		Result{}.eventType():     decode[Result],
		Trouble{}.eventType():    decode[Trouble],
		Tick{}.eventType():       decode[Tick],
		Restored{}.eventType():   decode[Restored],
		Reconciled{}.eventType(): decode[Reconciled],
		Resolve{}.eventType():    decode[Resolve],
	}
}

func decode[T Body](data []byte) (Body, error) {
	var body T
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&body); err != nil {
		return nil, err
	}
	return body, nil
}
