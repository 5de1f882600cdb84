// A receiver of CloudEvents on the official SDK. It writes each event as one JSON object per line, with the verdict of
// the SDK's own validation. It serves TLS if it gets a certificate, and requires a bearer token if it gets one.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"net/http"
	"os"
	"sync"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

type line struct {
	Invalid string          `json:"invalid,omitempty"`
	Event   json.RawMessage `json:"event,omitempty"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	out := flag.String("out", "", "file that each event is appended to")
	certificate := flag.String("certificate", "", "PEM; serves TLS")
	key := flag.String("key", "", "PEM")
	token := flag.String("token", "", "bearer token that is asked for")
	flag.Parse()

	file, err := os.OpenFile(*out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	var mutex sync.Mutex
	write := func(l line) error {
		mutex.Lock()
		defer mutex.Unlock()
		return json.NewEncoder(file).Encode(l)
	}

	// Not the SDK's own handler: it passes requests through a channel, and a request whose caller has died stays there
	// and blocks all later ones.
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if *token != "" && r.Header.Get("Authorization") != "Bearer "+*token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		code, l := http.StatusOK, line{}
		event, err := cloudevents.NewEventFromHTTPRequest(r)
		if err == nil {
			err = event.Validate()
		}
		if err != nil {
			code, l.Invalid = http.StatusBadRequest, err.Error()
		}
		if event != nil {
			if text, err := json.Marshal(event); err == nil {
				l.Event = text
			}
		}
		if err := write(l); err != nil {
			code = http.StatusInternalServerError
		}
		w.WriteHeader(code)
	})
	if *certificate != "" {
		log.Fatal(http.ListenAndServeTLS(*listen, *certificate, *key, guarded))
	}
	log.Fatal(http.ListenAndServe(*listen, guarded))
}
