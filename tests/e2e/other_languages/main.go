// Calls both services through Envoy with stubs that `buf generate` made.
//
// usage: client VISION_ADDRESS LLM_ADDRESS IMAGE_FILE
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	llm "tidegate.dev/gen/go/tidegate/llm/v1"
	vision "tidegate.dev/gen/go/tidegate/vision/v1"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := classify(ctx, os.Args[1], os.Args[3]); err != nil {
		log.Fatalf("classify: %v", err)
	}
	if err := chat(ctx, os.Args[2]); err != nil {
		log.Fatalf("chat: %v", err)
	}
}

func connect(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func classify(ctx context.Context, address, file string) error {
	connection, err := connect(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	encoded, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	image := &vision.Image{Content: &vision.Image_Encoded{Encoded: encoded}}
	request := &vision.ClassifyRequest{Images: []*vision.Image{image}, TopK: 1}
	response, err := vision.NewVisionServiceClient(connection).Classify(ctx, request)
	if err != nil {
		return err
	}
	fmt.Println("label:", response.GetResults()[0].GetClassifications()[0].GetLabel())
	return nil
}

func chat(ctx context.Context, address string) error {
	connection, err := connect(address)
	if err != nil {
		return err
	}
	defer connection.Close()
	temperature, tokens := float32(0), uint32(32)
	stream, err := llm.NewLlmServiceClient(connection).Chat(ctx, &llm.ChatRequest{
		Messages: []*llm.Message{{Role: llm.Role_ROLE_USER, Content: "What is the capital of Japan?"}},
		Options: &llm.GenerationOptions{
			Sampling: &llm.SamplingParameters{Temperature: &temperature, MaxTokens: &tokens},
		},
	})
	if err != nil {
		return err
	}
	answer, messages := "", 0
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		answer += response.GetDelta().GetText()
		messages++
	}
	fmt.Println("answer:", answer)
	fmt.Println("messages:", messages)
	return nil
}
