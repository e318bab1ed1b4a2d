// Calls both services through Envoy with stubs that `buf generate` made.
//
// usage: node client.ts VISION_URL LLM_URL IMAGE_FILE
import { readFileSync } from "node:fs";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { LlmService, Role } from "./gen/ts/tidegate/llm/v1/llm_pb.js";
import { VisionService } from "./gen/ts/tidegate/vision/v1/vision_pb.js";

const [visionUrl, llmUrl, file] = process.argv.slice(2);
const timeoutMs = 60_000;

const vision = createClient(VisionService, createGrpcTransport({ baseUrl: visionUrl }));
const encoded = readFileSync(file);
const { results } = await vision.classify(
  { images: [{ content: { case: "encoded", value: encoded } }], topK: 1 },
  { timeoutMs },
);
console.log("label:", results[0].classifications[0].label);

const llm = createClient(LlmService, createGrpcTransport({ baseUrl: llmUrl }));
const stream = llm.chat(
  {
    messages: [{ role: Role.USER, content: "What is the capital of Japan?" }],
    options: { sampling: { temperature: 0, maxTokens: 32 } },
  },
  { timeoutMs },
);
let answer = "";
let messages = 0;
for await (const response of stream) {
  answer += response.delta?.text ?? "";
  messages++;
}
console.log("answer:", answer);
console.log("messages:", messages);
