"""Answer a prompt with an exported model: python inference_example.py --model_path FOLDER --input_txt TEXT."""

from colossal_llama.commands.inference import main

if __name__ == "__main__":
    raise SystemExit(main())
