package server

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	keyturnv1 "github.com/keyturn/keyturn/gen/keyturn/v1"
	"github.com/keyturn/keyturn/internal/ingress"
)

// Streams are not cut off as calls are: each has a time of its own.
func TestStreamsOutliveCalls(t *testing.T) {
	times := callTimes()
	for _, service := range []protoreflect.ServiceDescriptor{
		keyturnv1.File_keyturn_v1_control_proto.Services().ByName("ControlService"), keyturnv1.File_keyturn_v1_delivery_proto.Services().ByName("DeliveryService"),
	} {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if _, ok := times["/"+string(method.Name())]; !ok && method.IsStreamingServer() {
				t.Errorf("%s is a stream, and would be cut off after %v", method.FullName(), ingress.CallTimeout)
			}
		}
	}
}
