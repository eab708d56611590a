import { render } from "preact";
import { Operator } from "./app";

const root = document.getElementById("app");
if (root !== null) render(<Operator />, root);
