package portmap

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// maxServices is how many services of a description are asked whether they have the Internet's address.
	maxServices = 4
	// maxDepth is how deep the elements of what a gateway says may nest.
	maxDepth = 32
	// maxText is how much text of one element is kept.
	maxText = 512
)

// wanServices are the services that map ports, best first.
var wanServices = [...]string{
	"urn:schemas-upnp-org:service:WANIPConnection:2",
	"urn:schemas-upnp-org:service:WANIPConnection:1",
	"urn:schemas-upnp-org:service:WANPPPConnection:1",
}

// service is one service of a description.
type service struct {
	kind    string // one of wanServices
	control string // URL, maybe relative
}

// description is what we want to know of a gateway's description of itself.
type description struct {
	base     string    // URLBase, of version 1.0; mostly empty
	services []service // best first, at most maxServices
}

// parseDescription parses the XML description of a device (UPnP Device Architecture 1.1, 2.3). Devices nest in devices;
// the services wanted may be anywhere.
func parseDescription(b []byte) (description, error) {
	var (
		d description
		s service
	)
	err := walkXML(b, func(element, text string) {
		switch element {
		case "URLBase":
			if d.base == "" {
				d.base = text
			}
		case "serviceType":
			s.kind = text
		case "controlURL":
			s.control = text
		case "service": // its end
			if slices.Contains(wanServices[:], s.kind) && s.control != "" && len(d.services) < maxServices {
				d.services = append(d.services, s)
			}
			s = service{}
		}
	})
	if err != nil {
		return description{}, fmt.Errorf("device description: %w", err)
	}
	slices.SortStableFunc(d.services, func(a, b service) int {
		return slices.Index(wanServices[:], a.kind) - slices.Index(wanServices[:], b.kind)
	})
	return d, nil
}

// soapReply is what a call came to. Fields that the reply lacks are empty.
type soapReply struct {
	externalIP   string
	reservedPort string
	errorCode    string // set if the call failed
	errorText    string
}

// parseSOAP parses the body of the reply to a call (UPnP Device Architecture 1.1, 3.2.2 and 3.2.5).
func parseSOAP(b []byte) (soapReply, error) {
	var r soapReply
	err := walkXML(b, func(element, text string) {
		switch element {
		case "NewExternalIPAddress":
			r.externalIP = text
		case "NewReservedPort":
			r.reservedPort = text
		case "errorCode":
			r.errorCode = text
		case "errorDescription":
			r.errorText = text
		}
	})
	if err != nil {
		return soapReply{}, fmt.Errorf("SOAP reply: %w", err)
	}
	return r, nil
}

// walkXML calls visit at the end of each element with its name, without namespace, and the text directly inside it,
// trimmed and cut to maxText bytes. Gateways write XML of all qualities, so a missing end tag inside is no error.
func walkXML(b []byte, visit func(element, text string)) error {
	d := xml.NewDecoder(bytes.NewReader(b))
	d.Strict = false
	d.CharsetReader = readCharset
	type open struct {
		name string
		text []byte
	}
	var stack []open
	for elements := 0; ; {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			if elements == 0 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			elements++
			if stack = append(stack, open{name: t.Name.Local}); len(stack) > maxDepth {
				return fmt.Errorf("more than %d elements deep", maxDepth)
			}
		case xml.CharData:
			if len(stack) > 0 {
				top := &stack[len(stack)-1]
				top.text = append(top.text, t[:min(len(t), maxText-len(top.text))]...)
			}
		case xml.EndElement:
			if len(stack) > 0 {
				top := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				visit(top.name, strings.TrimSpace(string(top.text)))
			}
		}
	}
}

// readCharset lets descriptions in Latin-1 pass: what matters in them is ASCII.
func readCharset(_ string, r io.Reader) (io.Reader, error) {
	b, err := io.ReadAll(r) // of a body whose length is bounded
	if err != nil {
		return nil, err
	}
	utf8 := make([]byte, 0, len(b))
	for _, c := range b {
		utf8 = append(utf8, string(rune(c))...)
	}
	return bytes.NewReader(utf8), nil
}

// argument is one argument of a call.
type argument struct{ name, value string }

// appendCall appends the body of a call (UPnP Device Architecture 1.1, 3.2.1).
func appendCall(b []byte, kind, action string, args []argument) []byte {
	buf := bytes.NewBuffer(b)
	fmt.Fprintf(buf, `<?xml version="1.0"?>`+"\r\n"+
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" `+
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:%s xmlns:u="%s">`, action, kind)
	for _, a := range args {
		fmt.Fprintf(buf, "<%s>", a.name)
		_ = xml.EscapeText(buf, []byte(a.value)) // a buffer takes everything
		fmt.Fprintf(buf, "</%s>", a.name)
	}
	fmt.Fprintf(buf, "</u:%s></s:Body></s:Envelope>\r\n", action)
	return buf.Bytes()
}
